#include "parse.h"

#include <bit>
#include <cstdint>
#include <cstring>

#include "blocks.h"
#include "unicode.h"

namespace bertnli {
namespace {

// Builds one cleaned text. White space is written when a character follows it: one character unchanged, a longer run as
// one space.
class ParseCleaner {
 public:
  explicit ParseCleaner(char* out) : first_(out), to_(out) {}

  void space(const char* p, int size) { run_ = run_.empty() ? std::string_view(p, static_cast<size_t>(size)) : " "; }
  void blanks() { run_ = " "; }
  void keep(const char* p, int size) {
    gap();
    for (int i = 0; i < size; ++i) to_[i] = p[i];
    to_ += size;
  }
  // As `keep`, but reads and writes up to 15 bytes more.
  void keep_word(const char* p, int size) {
    gap();
    for (int i = 0; i < size; i += 16) std::memcpy(to_ + i, p + i, 16);
    to_ += size;
  }
  size_t size() const { return static_cast<size_t>(to_ - first_); }

 private:
  void gap() {
    if (to_ != first_)
      for (const char c : run_) *to_++ = c;
    run_ = {};
  }

  char *const first_, *to_;
  std::string_view run_;
};

}  // namespace

void extract_text(std::string_view parse, std::string& out) {
  const char *p = parse.data(), *end = p + parse.size();
  const size_t begin = out.size();
  out.resize(begin + parse.size() + 16);  // the text never grows; 16 bytes are copied at a time
  ParseCleaner text(out.data() + begin);
  const auto one = [&] {
    const auto b = static_cast<unsigned char>(*p);
    const CodePoint c = b < 0x80 ? CodePoint{b, 1} : decode_utf8(p, end);
    if (is_python_space(c.value)) {
      text.space(p, c.size);
    } else if (b != '(' && b != ')') {
      text.keep(p, c.size);
    }
    p += c.size;
  };
  while (p < end) {
    const auto left = static_cast<size_t>(end - p), size = left < 64 ? left : 64;
    const char* block = p;
    char copy[64 + 16];
    if (left < sizeof copy) {  // padded with brackets, which are dropped, so that 16 bytes can be read
      std::memset(copy, '(', sizeof copy);
      std::memcpy(copy, p, size);
      block = copy;
    }
    if (block_mask(block, 64, [](Lane v) { return v.under_or_high(' '); }) != 0) {  // control characters, not ASCII
      const char* stop = p + size;
      while (p < stop) one();
      continue;
    }
    uint64_t spaces = block_mask(block, 64, [](Lane v) { return v.equal(' '); });
    uint64_t keep = ~(spaces | block_mask(block, 64, [](Lane v) { return v.bracket(); }));
    while (keep != 0) {
      const int first = std::countr_zero(keep), length = std::countr_one(keep >> first);
      const uint64_t before = (uint64_t{1} << first) - 1;
      if ((spaces & before) != 0) text.blanks();
      spaces &= ~before;
      text.keep_word(block + first, length);
      keep &= keep + (uint64_t{1} << first);  // without the lowest run of ones
    }
    if (spaces != 0) text.blanks();
    p += size;
  }
  out.resize(begin + text.size());
}

}  // namespace bertnli

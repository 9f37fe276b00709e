#include "parse.h"

#include <bit>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "unicode.h"

namespace bertnli {
namespace {

// Builds one cleaned text. White space waits until a character follows it: a run of one is kept as it is.
class ParseCleaner {
 public:
  explicit ParseCleaner(char* out) : first_(out), to_(out) {}

  void space(const char* p, int size) {
    if (run_++ == 0) {
      run_at_ = p;
      run_size_ = size;
    }
  }
  void spaces(int n) {
    if (n == 0) return;
    if (run_ == 0) {
      space(" ", 1);
      --n;
    }
    run_ += static_cast<size_t>(n);
  }
  // Where the next kept bytes go.
  char* gap() {
    if (run_ != 0) {
      if (to_ != first_) {
        if (run_ > 1) {
          *to_++ = ' ';
        } else {
          for (int i = 0; i < run_size_; ++i) *to_++ = run_at_[i];
        }
      }
      run_ = 0;
    }
    return to_;
  }
  void keep(const char* p, int size) {
    char* to = gap();
    for (int i = 0; i < size; ++i) to[i] = p[i];
    to_ += size;
  }
  void kept(int size) { to_ += size; }
  size_t size() const { return static_cast<size_t>(to_ - first_); }

 private:
  char *const first_, *to_;
  const char* run_at_ = nullptr;
  size_t run_ = 0;
  int run_size_ = 0;
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
#if defined(__SSE2__)
  while (end - p >= 32) {  // so that 16 bytes may be read from each of the next 16
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const auto bits = [](__m128i x) { return static_cast<unsigned>(_mm_movemask_epi8(x)); };
    if (bits(_mm_cmplt_epi8(v, _mm_set1_epi8(' '))) != 0) {  // control characters, or beyond ASCII
      const char* stop = p + 16;
      while (p < stop) one();
      continue;
    }
    const unsigned spaces = bits(_mm_cmpeq_epi8(v, _mm_set1_epi8(' ')));
    const unsigned brackets = bits(_mm_cmpeq_epi8(_mm_and_si128(v, _mm_set1_epi8(~1)), _mm_set1_epi8('(')));
    unsigned keep = ~(spaces | brackets) & 0xFFFFu, seen = 0;  // seen: bits before the current place
    while (keep != 0) {
      const int start = std::countr_zero(keep), size = std::countr_one(keep >> start);
      const unsigned before = (1u << start) - 1;
      text.spaces(std::popcount(spaces & before & ~seen));
      std::memcpy(text.gap(), p + start, 16);
      text.kept(size);
      seen = before | ((1u << size) - 1) << start;
      keep &= ~seen;
    }
    text.spaces(std::popcount(spaces & ~seen));
    p += 16;
  }
#endif
  while (p < end) one();
  out.resize(begin + text.size());
}

}  // namespace bertnli

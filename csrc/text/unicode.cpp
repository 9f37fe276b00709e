#include "unicode.h"

#include <cstring>
#include <vector>

namespace bertnli {
namespace {

struct Range {
  char32_t first, last;
  int value;
};
struct Mapped {
  char32_t from;
  uint16_t offset, size;
};

#include "unicode_tables.inc"

constexpr size_t kPage = 128, kPages = 0x110000 / kPage;

// The ranges unrolled to two-stage tables, once, while the module loads; read-only from then on.
struct Tables {
  std::vector<uint16_t> page = std::vector<uint16_t>(kPages, 0);
  std::vector<CharInfo> info = std::vector<CharInfo>(kPage);  // page 0 of the vector: nothing special

  CharInfo& at(char32_t c) {
    uint16_t& p = page[c / kPage];
    if (p == 0) {
      p = static_cast<uint16_t>(info.size() / kPage);
      info.resize(info.size() + kPage);
    }
    return info[p * kPage + c % kPage];
  }

  template <size_t N, class Set>
  void fill(const Range (&ranges)[N], Set set) {
    for (const Range& r : ranges) {
      // The private-use planes are two long deleted ranges: their full pages share one.
      for (char32_t c = r.first; c <= r.last; ++c) {
        if (c % kPage == 0 && c + kPage <= r.last + 1 && c >= 0xF0000) {
          if (shared_ == 0) {
            shared_ = static_cast<uint16_t>(info.size() / kPage);
            info.resize(info.size() + kPage);
          }
          page[c / kPage] = shared_;
          for (size_t i = 0; i < kPage; ++i) set(info[shared_ * kPage + i], r.value);
          c += kPage - 1;
        } else {
          set(at(c), r.value);
        }
      }
    }
  }

  Tables() {
    fill(kLowerRanges, [](CharInfo& i, int v) { i.lower = static_cast<Kind>(v); });
    fill(kCasedRanges, [](CharInfo& i, int v) { i.cased = static_cast<Kind>(v); });
    fill(kPunctuationRanges, [](CharInfo& i, int) { i.punctuation = 1; });
    fill(kCombiningRanges, [](CharInfo& i, int v) { i.rank = static_cast<uint8_t>(v); });
    uint16_t n = 0;
    for (const Mapped& m : kMapped) at(m.from).mapped = ++n;
  }

 private:
  uint16_t shared_ = 0;
};

const Tables kTables;

}  // namespace

const CharInfo& char_info(char32_t c) { return kTables.info[kTables.page[c / kPage] * kPage + c % kPage]; }

std::u32string_view mapped(const CharInfo& info) {
  const Mapped& m = kMapped[info.mapped - 1];
  return {kMappedCharacters + m.offset, m.size};
}

CodePoint decode_utf8(const char* p, const char* end) {
  const auto byte = [p](int i) { return static_cast<unsigned char>(p[i]); };
  const auto follows = [&](int i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned b = byte(0);
  const ptrdiff_t left = end - p;
  if (b < 0x80) return {b, 1};
  if (b >= 0xC2 && b < 0xE0 && left >= 2 && follows(1)) return {(b & 0x1F) << 6 | (byte(1) & 0x3Fu), 2};
  if (b >= 0xE0 && b < 0xF0 && left >= 3 && follows(1) && follows(2)) {
    const char32_t c = (b & 0x0F) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    if (c >= 0x800 && (c < 0xD800 || c > 0xDFFF)) return {c, 3};
  } else if (b >= 0xF0 && b < 0xF5 && left >= 4 && follows(1) && follows(2) && follows(3)) {
    const char32_t c = (b & 0x07) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu);
    if (c >= 0x10000 && c < 0x110000) return {c, 4};
  }
  return {0xFFFD, 1};
}

int encode_utf8(char32_t c, char* out) {
  if (c < 0x80) {
    out[0] = static_cast<char>(c);
    return 1;
  }
  if (c < 0x800) {
    out[0] = static_cast<char>(0xC0 | c >> 6);
    out[1] = static_cast<char>(0x80 | (c & 0x3F));
    return 2;
  }
  if (c < 0x10000) {
    out[0] = static_cast<char>(0xE0 | c >> 12);
    out[1] = static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out[2] = static_cast<char>(0x80 | (c & 0x3F));
    return 3;
  }
  out[0] = static_cast<char>(0xF0 | c >> 18);
  out[1] = static_cast<char>(0x80 | (c >> 12 & 0x3F));
  out[2] = static_cast<char>(0x80 | (c >> 6 & 0x3F));
  out[3] = static_cast<char>(0x80 | (c & 0x3F));
  return 4;
}

bool is_ascii(std::string_view text) {
  const char *p = text.data(), *end = p + text.size();
  for (; end - p >= 32; p += 32) {
    uint64_t w[4];
    std::memcpy(w, p, 32);
    if ((w[0] | w[1] | w[2] | w[3]) & 0x8080808080808080u) return false;
  }
  unsigned char all = 0;
  for (; p < end; ++p) all |= static_cast<unsigned char>(*p);
  return all < 0x80;
}

size_t find_invalid_utf8(std::string_view text) {
  if (is_ascii(text)) return std::string_view::npos;
  const char *begin = text.data(), *end = begin + text.size();
  for (const char* p = begin; p < end;) {
    if (static_cast<unsigned char>(*p) < 0x80) {
      ++p;
      continue;
    }
    const CodePoint c = decode_utf8(p, end);
    if (c.size == 1) return static_cast<size_t>(p - begin);
    p += c.size;
  }
  return std::string_view::npos;
}

bool is_python_space(char32_t c) {
  if (c <= 0x20) return c == 0x20 || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace bertnli

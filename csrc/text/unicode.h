// UTF-8, and what BERT's normaliser and Python's str do with each code point.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace bertnli {

struct CodePoint {
  char32_t value;
  int size;  // in bytes; 1 for invalid UTF-8 (value is then U+FFFD)
};

// The code point at p < end. Never reads past end.
CodePoint decode_utf8(const char* p, const char* end);
// Writes 1 to 4 bytes, returns how many.
int encode_utf8(char32_t c, char* out);
// The offset of the first byte that is not valid UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);
bool is_ascii(std::string_view text);
// str.isspace() of one character: the white space of str.split(), str.strip() and \s in regular expressions.
bool is_python_space(char32_t c);

enum class Kind : uint8_t {
  kKeep,
  kDelete,   // leaves no trace
  kSpace,    // ends a word
  kCjk,      // a word of its own
  kMapped,   // decomposed, stripped, lowered: see mapped()
  kHangul,   // decomposed by arithmetic
  kBarrier,  // a stripped mark of combining class 0: other marks are not reordered across it
};

// One entry a code point, in pages of 128.
struct CharInfo {
  Kind lower : 4;  // with lowercase (and accents stripped)
  Kind cased : 4;
  uint8_t punctuation : 1;
  uint8_t rank : 7;  // order of its canonical combining class, 0 for a starter
  uint16_t mapped;   // with lowercase: index of what it becomes, 0 for itself
};

const CharInfo& char_info(char32_t c);
std::u32string_view mapped(const CharInfo& info);

}  // namespace bertnli

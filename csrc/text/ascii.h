// What BERT's normaliser and its pre-tokeniser do with each ASCII character.
#pragma once

#include <array>
#include <cstdint>

#include "unicode.h"

namespace bertnli {

class AsciiTable {
 public:
  static constexpr uint8_t kDeleted = 0, kSpace = 1, kPunctuation = 2;  // else the (lowered) character: larger

  explicit AsciiTable(bool lowercase) {
    for (char32_t c = 0; c < 128; ++c) {
      const CharInfo& info = char_info(c);
      const Kind kind = lowercase ? info.lower : info.cased;
      table_[c] = c == ' ' || kind == Kind::kSpace    ? kSpace
                  : kind == Kind::kDelete             ? kDeleted
                  : info.punctuation                  ? kPunctuation
                  : lowercase && c >= 'A' && c <= 'Z' ? static_cast<uint8_t>(c + 32)
                                                      : static_cast<uint8_t>(c);
    }
  }
  uint8_t operator[](unsigned char c) const { return table_[c]; }  // c < 128

 private:
  std::array<uint8_t, 128> table_;
};

}  // namespace bertnli

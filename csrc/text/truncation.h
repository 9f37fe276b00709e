// How a pair of texts is cut to the tokens that fit.
#pragma once

#include <cstddef>
#include <string>

namespace bertnli {

enum class Truncation { kLongestFirst, kLongestFirstHf, kRatio, kOnlyFirst, kOnlySecond };

// Numbers of tokens of the two texts of a pair.
struct PairLengths {
  size_t first, second;
};
// The lengths after truncation to `budget` tokens in all. False where only_first or only_second cannot.
bool truncate_pair(Truncation rule, size_t first, size_t second, size_t budget, PairLengths& kept);

// Thrown where the text that may not be cut does not fit.
struct CannotTruncate {
  Truncation rule;
  size_t budget;
  int which() const {
    return rule == Truncation::kOnlyFirst ? 1 : 0;
  }  // text that is too long: 0 the first, 1 the second
  std::string what(const std::string& text) const;
};

}  // namespace bertnli

#include "truncation.h"

#include <algorithm>

namespace bertnli {

bool truncate_pair(Truncation rule, size_t p, size_t h, size_t budget, PairLengths& kept) {
  kept = {p, h};
  if (p + h <= budget) return true;
  switch (rule) {
    case Truncation::kLongestFirst:
      // Popping one token at a time, the first text only while strictly longer, ends here:
      //   the second alone was longer   h' = M - p      (p <= M / 2)
      //   the first alone was longer    h' = h          (h <= M / 2)
      //   both                          h' = M / 2, the odd token stays with the first
      kept.second = std::min(h, std::max(budget - std::min(budget, p), budget / 2));
      kept.first = budget - kept.second;
      return true;
    case Truncation::kLongestFirstHf: {
      // As in `tokenizers`: where both are cut, the odd token stays with the longer text (the second if equal).
      const size_t small = std::min(p, h);
      size_t large = small > budget ? small : std::max(small, budget - small), s = small;
      if (s + large > budget) {
        s = budget / 2;
        large = s + budget % 2;
      }
      kept = p > h ? PairLengths{large, s} : PairLengths{s, large};
      return true;
    }
    case Truncation::kRatio:
      // budget * p / (p + h), rounded to nearest; a text that has tokens keeps one where there is room for both.
      kept.first = (2 * budget * p + p + h) / (2 * (p + h));
      if (budget >= 2) {
        if (p > 0) kept.first = std::max<size_t>(kept.first, 1);
        if (h > 0) kept.first = std::min(kept.first, budget - 1);
      }
      kept.second = budget - kept.first;
      return true;
    case Truncation::kOnlyFirst:
      if (h > budget) return false;
      kept.first = budget - h;
      return true;
    case Truncation::kOnlySecond:
      if (p > budget) return false;
      kept.second = budget - p;
      return true;
  }
  return false;
}

std::string CannotTruncate::what(const std::string& text) const {
  return text + " has more than the " + std::to_string(budget) + " tokens that fit, and truncation='" +
         (rule == Truncation::kOnlyFirst ? "only_first" : "only_second") +
         "' may not cut it; raise max_len or choose another truncation";
}

}  // namespace bertnli

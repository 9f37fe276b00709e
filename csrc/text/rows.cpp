#include "rows.h"

#include <algorithm>
#include <cstring>

#include "parse.h"
#include "unicode.h"

namespace bertnli {

bool truncate_pair(Truncation rule, size_t p, size_t h, size_t budget, Kept& kept) {
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
      kept = p > h ? Kept{large, s} : Kept{s, large};
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

std::string CannotCut::what(const std::string& text) const {
  return text + " has more than the " + std::to_string(budget) + " tokens that fit, and truncation='" +
         (rule == Truncation::kOnlyFirst ? "only_first" : "only_second") +
         "' may not cut it; raise max_len or choose another truncation";
}

RowWriter::RowWriter(const RowOptions& options, bool pairs, Ids& out)
    : options_(options), out_(out), loan_(options.tokenizer), budget_(options.max_len - (pairs ? 3 : 2)) {
  // What a text must be encoded to, for the rule to know all it needs.
  limit_ = {budget_ + 1, options.rule == Truncation::kLongestFirstHf || options.rule == Truncation::kRatio};
  if (!pairs) limit_ = {budget_, false};
}

size_t RowWriter::encode(RowText text, Limit limit) {
  const Tokenizer& tokenizer = options_.tokenizer;
  if (options_.parse) {
    size_t count;
    if (tokenizer.encode_parse(text.text, text.readable, limit, *loan_, out_, count)) return count;
    plain_.clear();
    extract_text(text.text, plain_);
    text = {plain_, plain_.data() + plain_.size()};
  }
  if (options_.lower && !is_ascii(text.text)) {
    lowered_ = options_.lower(text.text);
    text = {lowered_, lowered_.data() + lowered_.size()};
  }
  return tokenizer.encode(text.text, text.readable, limit, *loan_, out_);
}

bool RowWriter::repeats(std::string_view text) const {
  return !text.empty() && text.size() == last_.size() &&
         (text.data() == last_.data() || std::memcmp(text.data(), last_.data(), text.size()) == 0);
}

size_t RowWriter::write(RowText text) {
  out_.push(options_.tokenizer.special.cls);
  const size_t at = out_.size();
  encode(text, limit_);
  out_.push(options_.tokenizer.special.sep);
  return out_.size() - at + 1;
}

size_t RowWriter::write(RowText first, RowText second) {
  const SpecialIds& special = options_.tokenizer.special;
  out_.push(special.cls);
  const size_t first_at = out_.size();
  size_t p;
  if (repeats(first.text)) {  // premises come in runs: copy what the last row made of it
    p = last_count_;
    int32_t* to = out_.room(p);
    std::memcpy(to, out_.data() + last_at_, p * sizeof(int32_t));
    out_.advance(p);
  } else {
    p = encode(first, limit_);
  }
  const size_t first_stored = out_.size() - first_at;
  out_.push(special.sep);
  const size_t second_at = out_.size();
  const size_t h = encode(second, limit_);
  size_t first_kept = first_stored;
  if (p + h > budget_) {
    Kept kept;
    if (!truncate_pair(options_.rule, p, h, budget_, kept)) throw CannotCut{options_.rule, budget_};
    first_kept = kept.first;
    int32_t* row = out_.data() + first_at;
    row[kept.first] = special.sep;
    std::memmove(row + kept.first + 1, out_.data() + second_at, kept.second * sizeof(int32_t));
    out_.resize_down(first_at + kept.first + 1 + kept.second);
  }
  out_.push(special.sep);
  last_ = first_kept == p ? first.text : std::string_view();
  last_at_ = first_at;
  last_count_ = p;
  return first_kept + 2;
}

}  // namespace bertnli

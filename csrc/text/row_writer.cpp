#include "row_writer.h"

#include <cstring>

#include "parse.h"
#include "unicode.h"

namespace bertnli {

RowWriter::RowWriter(const RowOptions& options, bool pairs, IdBuffer& out)
    : options_(options), out_(out), loan_(options.tokenizer), budget_(options.max_len - (pairs ? 3 : 2)) {
  // The truncation rule needs no more tokens of a text than these.
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
  if (repeats(first.text)) {  // premises often repeat: copy the ids of the last row
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
    PairLengths kept;
    if (!truncate_pair(options_.rule, p, h, budget_, kept)) throw CannotTruncate{options_.rule, budget_};
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

// Appends rows `<cls> first <sep> second <sep>` of token ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "tokenizer.h"
#include "truncation.h"

namespace bertnli {

struct RowText {
  std::string_view text;
  const char* readable;  // the text's end or later: bytes before it may be read
};

struct RowOptions {
  const Tokenizer& tokenizer;
  size_t max_len;
  Truncation rule = Truncation::kLongestFirst;
  bool parse = false;  // texts are binary parses
  // str.lower() of a text beyond ASCII, for tokenizers that want it; null where texts come lowered.
  std::function<std::string(std::string_view)> lower = {};
};

class RowWriter {
 public:
  // pairs: rows have two texts.
  RowWriter(const RowOptions& options, bool pairs, IdBuffer& out);

  // Append a row; return the length of its segment 0. The first text must stay in memory until the next row or
  // forget(). Throw CannotTruncate.
  size_t write(RowText text);
  size_t write(RowText first, RowText second);
  // Call when the first text or the ids were moved or overwritten: the next row does not copy from the last one.
  void forget() { last_ = {}; }

 private:
  size_t encode(RowText text, Limit limit);
  bool repeats(std::string_view text) const;

  const RowOptions& options_;
  IdBuffer& out_;
  Tokenizer::CacheLoan loan_;
  const size_t budget_;
  Limit limit_;
  std::string_view last_;  // the first text of the last row, if none of it was cut
  size_t last_at_ = 0, last_count_ = 0;
  std::string plain_, lowered_;
};

}  // namespace bertnli

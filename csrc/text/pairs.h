// Pairs of texts to rows `<cls> first <sep> second <sep>`: ragged, dense, and gathered into batches.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel.h"
#include "reader.h"
#include "rows.h"
#include "tokenizer.h"

namespace bertnli {

// N texts: either views, or ranges of one block of bytes that ends at `readable`.
struct Texts {
  size_t size = 0;
  const std::string_view* views = nullptr;
  const char *base = nullptr, *readable = nullptr;
  const int64_t *starts = nullptr, *ends = nullptr;
  size_t mask = SIZE_MAX;  // the view of text i is views[i & mask]: of lists there are only those that are needed

  std::string_view operator[](size_t i) const {
    return views != nullptr ? views[i & mask]
                            : std::string_view(base + starts[i], static_cast<size_t>(ends[i] - starts[i]));
  }
  RowText row(size_t i) const {
    const std::string_view text = (*this)[i];
    return {text, views != nullptr ? text.data() + text.size() : readable};
  }
};

struct Job {
  const Tokenizer& tokenizer;
  const Texts& first;
  const Texts* second;  // null: single texts, `<cls> text <sep>`
  size_t max_len;
  Truncation rule;
  int threads;
  const char* names[2];  // the arguments' names, for errors
  // Makes the texts [begin, end) readable; those before `over` may go. Null where all are. No more than Pieces::kReady
  // are needed at a time, so that what is made of them stays in the processor's caches.
  Pieces::Prepare take = {};
};

// Fills offsets [N+1] and first_lens [N]; returns the ids of all rows.
Ids encode_ragged(const Job& job, int64_t* offsets, int32_t* first_lens);
// Fills ids and segments [N, max_len] and lens [N].
void encode_dense(const Job& job, int64_t* ids, int64_t* segments, int64_t* lens);

// The rows of a file of labelled pairs, one element a row but for ids.
struct EncodedFile {
  Ids ids, lengths, first_lens, labels;
  int64_t dropped = 0;
};
EncodedFile encode_file(const std::string& path, const ReadOptions& read, const RowOptions& rows);

// The tokens of each text with their places; fills offsets [N+1]. `lowered`: the texts as encode() takes them.
Spans encode_spans(const Tokenizer& tokenizer, const Texts& texts, const Texts& lowered, int threads, int64_t* offsets);

// Rows of a ragged store. `rows` must lie within it; null means all `count` rows in order.
struct Ragged {
  const int32_t* ids;
  const int64_t* offsets;
  const int32_t* first_lens;
};
void gather_packed(const Ragged& from, const int64_t* rows, size_t count, int32_t* ids, int32_t* segments,
                   int32_t* positions, const int32_t* cu_seqlens);
void gather_dense(const Ragged& from, const int64_t* rows, size_t count, size_t max_len, int64_t pad, int64_t* ids,
                  int64_t* segments, int64_t* lens);

}  // namespace bertnli

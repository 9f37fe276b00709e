// Texts and pairs of texts to rows of token ids, from strings or from a file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel.h"
#include "reader.h"
#include "row_writer.h"
#include "tokenizer.h"

namespace bertnli {

// N texts: either views, or ranges of one block of bytes that ends at `readable`.
struct Texts {
  size_t size = 0;
  const std::string_view* views = nullptr;
  const char *base = nullptr, *readable = nullptr;
  const int64_t *starts = nullptr, *ends = nullptr;
  size_t mask = SIZE_MAX;  // the view of text i is views[i & mask]; for lists, views is a ring

  std::string_view operator[](size_t i) const {
    if (views != nullptr) return views[i & mask];
    // Clamped, since another thread may write to the bounds after they were checked.
    const auto bytes = static_cast<size_t>(readable - base);
    const auto bound = [](const int64_t* p) { return static_cast<size_t>(__atomic_load_n(p, __ATOMIC_RELAXED)); };
    const size_t start = std::min(bound(starts + i), bytes), end = std::clamp(bound(ends + i), start, bytes);
    return {base + start, end - start};
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
  // Makes the texts [begin, end) readable; those before `over` may go. Null where all are readable. At most
  // Pieces::kReady are needed at a time, so that their views stay in the processor's caches.
  Pieces::Prepare take = {};
};

// Fills offsets [N+1] and first_lens [N]; returns the ids of all rows.
IdBuffer encode_ragged(const Job& job, int64_t* offsets, int32_t* first_lens);

// The rows of a file of labelled pairs; all columns but ids have one element a row.
struct EncodedFile {
  IdBuffer ids, lengths, first_lens, labels;
  RowsFound found;
};
EncodedFile encode_file(const std::string& path, const ReadOptions& read, const RowOptions& rows);

// The tokens of each text with their places; fills offsets [N+1]. `lowered` has the texts as encode() takes them.
Spans encode_spans(const Tokenizer& tokenizer, const Texts& texts, const Texts& lowered, int threads, int64_t* offsets);

}  // namespace bertnli

// Sequences of an encoded store, gathered into packed and padded batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bertnli {

// N sequences: sequence i has the ids from offsets[i] to offsets[i + 1], of which first_lens[i] are in segment 0.
struct SequenceStore {
  const int32_t* ids;         // [total]
  const int64_t* offsets;     // [count + 1]
  const int32_t* first_lens;  // [count]
  size_t total, count;
};

struct Sequence {
  const int32_t* ids;
  size_t length, first_len;
};

// The sequences index[0] to index[count - 1] of a store; all of them where index is null. Their bounds are checked
// copies: offsets come from files, and another thread may write to them before the ids are read. Throws
// std::out_of_range for an index, std::invalid_argument for offsets that do not fit the ids.
std::vector<Sequence> select_sequences(const SequenceStore& store, const int64_t* index, size_t count);

// Fills ids, segments and positions [sum of the lengths] and cu_seqlens [sequences + 1].
void gather_packed(const std::vector<Sequence>& sequences, int32_t* ids, int32_t* segments, int32_t* positions,
                   int32_t* cu_seqlens);
// Fills ids and segments [sequences, max_len] and lens [sequences]. No sequence may be longer than max_len.
void gather_padded(const std::vector<Sequence>& sequences, size_t max_len, int64_t pad, int64_t* ids, int64_t* segments,
                   int64_t* lens);

}  // namespace bertnli

// One chunk of a batch: whole sequences that go through all layers together.
#pragma once
#include "prepacked.h"

namespace bertnli {

struct Batch {
  const Embed& embed;          // with the tables of the encoder
  const int32_t* cu_seqlens;   // [B+1]
  const int64_t* token_index;  // [R]: the tokens that are read, ascending; null if all are
  float* out;                  // [R or T, H]
  bool absorb;                 // whether the last layer's attention is absorbed: for one token a sequence at most
};

// Sequences `begin` to `end`, of whose tokens the read_begin-th to the read_end-th that are read.
struct Chunk {
  int64_t begin, end, read_begin, read_end;
};

// Writes the chunk's part of `out`: alone, or with each step shared among all threads.
void encode(const PrepackedEncoder& encoder, const Batch& batch, const Chunk& chunk, bool shared);

}  // namespace bertnli

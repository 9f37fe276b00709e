// What both tokenizers share: text is split into raw chunks at spaces, and the ids of a chunk are looked up in a cache.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "id_buffer.h"
#include "word_cache.h"

namespace bertnli {

struct SpecialIds {
  int32_t pad, cls, sep, unk;
};

// How many ids of a text are wanted: `store` ids are stored. With count_all all are counted, for truncation rules that
// need the true length.
struct Limit {
  size_t store = SIZE_MAX;
  bool count_all = false;
};

// The tokens of texts and their places, one element a token: the characters [start, end) of the original text, and the
// index of the word (a run without white space, a punctuation mark, a special token) within its text.
struct Spans {
  IdBuffer ids, starts, ends, words;
};

// Immutable once built, shared by threads. Each call borrows a cache from atomic slots: a lock could stay locked after
// a fork.
class Tokenizer {
 public:
  virtual ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Appends at most limit.store ids of the text; returns its number of tokens (at least limit.store where it stopped).
  // Bytes from the text's begin up to `readable` (its end or later) may be read.
  size_t encode(std::string_view text, const char* readable, Limit limit, ChunkCache& cache, IdBuffer& out) const;
  // Appends the ids of a binary parse, those of encode() of its extract_text(). Returns false and appends nothing for
  // control characters, characters beyond ASCII and brackets within words: then the caller extracts the text.
  bool encode_parse(std::string_view parse, const char* readable, Limit limit, ChunkCache& cache, IdBuffer& out,
                    size_t& count) const;
  // Appends every token of the text with its place. `lowered` is the text as encode() takes it.
  virtual void encode_spans(std::string_view text, std::string_view lowered, Spans& out) const = 0;
  // Whether encode() wants text beyond ASCII lowered by Python.
  virtual bool wants_lowered() const = 0;

  class CacheLoan {
   public:
    explicit CacheLoan(const Tokenizer& owner);
    ~CacheLoan();
    CacheLoan(const CacheLoan&) = delete;
    CacheLoan& operator=(const CacheLoan&) = delete;
    ChunkCache& operator*() const { return *cache_; }

   private:
    const Tokenizer& owner_;
    std::unique_ptr<ChunkCache> cache_;
  };

  const SpecialIds special;

 protected:
  explicit Tokenizer(SpecialIds ids) : special(ids) {}
  // Appends the ids of one raw chunk, stopping once `limit` ids of it are there and count_all is false (ids beyond
  // limit are then not stored); returns their number.
  virtual size_t encode_chunk(std::string_view chunk, Limit limit, IdBuffer& out) const = 0;
  // Writes all ids of a chunk that has a key, kMostShortIds at most; returns their end.
  virtual int32_t* encode_short_chunk(std::string_view chunk, ChunkKey key, int32_t* to) const = 0;
  static constexpr size_t kMostShortIds = 2 * ChunkKey::kMaxSize;  // a byte becomes two characters at most

 private:
  template <class Separators>
  bool encode_blocks(std::string_view text, const char* readable, Limit limit, ChunkCache& cache, IdBuffer& out,
                     size_t& count, Separators separators) const;

  mutable std::array<std::atomic<ChunkCache*>, 16> idle_{};
};

}  // namespace bertnli

// Text to token ids: D2L's words and BERT's WordPiece. No Python, no torch.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bertnli {

// A growing array of ids. realloc moves pages rather than bytes, and room() leaves no per-id checks to the writers.
class Ids {
 public:
  Ids() = default;
  Ids(const Ids&) = delete;
  Ids& operator=(const Ids&) = delete;
  Ids(Ids&& o) noexcept { swap(o); }
  Ids& operator=(Ids&& o) noexcept {
    swap(o);
    return *this;
  }
  ~Ids() { std::free(data_); }

  int32_t* data() const { return data_; }
  size_t size() const { return size_; }
  void resize_down(size_t n) { size_ = n; }
  // The place of the next id, with space for `more` ids.
  int32_t* room(size_t more) {
    if (capacity_ - size_ < more) grow(more);
    return data_ + size_;
  }
  void push(int32_t id) {
    *room(1) = id;
    ++size_;
  }
  void advance(size_t n) { size_ += n; }
  void shrink() {
    if (void* p = std::realloc(data_, (size_ + 1) * sizeof(int32_t))) {
      data_ = static_cast<int32_t*>(p);
      capacity_ = size_ + 1;
    }
  }
  int32_t* release() { return std::exchange(data_, nullptr); }  // the caller frees it

 private:
  void swap(Ids& o) {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(capacity_, o.capacity_);
  }
  void grow(size_t more);

  int32_t* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

// What raw chunks (the bytes between spaces) became, so that a repeated one costs one comparison of 16 bytes.
// Fixed size: a full window overwrites, so hostile text cannot make it grow. One thread at a time.
class ChunkCache {
 public:
  static constexpr size_t kMaxKey = 15, kMaxIds = 3;

  struct Key {
    uint64_t lo = 0, hi = 0;  // the bytes, zeros behind them, the length in the last byte
    bool operator==(const Key&) const = default;
  };
  struct Slot {
    Key key;
    int32_t ids[kMaxIds] = {};
    int32_t count = 0;
  };

  ChunkCache() : slots_(kSlots + kWindow) {}

  static size_t hash(const Key& k) {
    const uint64_t x = (k.lo ^ (k.hi * 0x9E3779B97F4A7C15u)) * 0xD6E8FEB86659FD93u;
    return static_cast<size_t>(x >> (64 - kBits));
  }
  const Slot* find(const Key& k, size_t h) const {
    for (size_t i = h; i < h + kWindow; ++i) {
      if (slots_[i].key == k) return &slots_[i];
    }
    return nullptr;
  }
  void insert(const Key& k, size_t h, const int32_t* ids, size_t n);

 private:
  static constexpr int kBits = 15;
  static constexpr size_t kSlots = size_t{1} << kBits, kWindow = 4;
  std::vector<Slot> slots_;
};

// Strings to ids; open addressing over one block of bytes.
class StringMap {
 public:
  explicit StringMap(const std::vector<std::pair<std::string, int32_t>>& items);
  int32_t find(std::string_view s, int32_t missing) const;

 private:
  struct Entry {
    uint64_t hash;
    uint32_t offset, size;
    int32_t id;
  };
  std::string bytes_;
  std::vector<Entry> entries_;
  size_t mask_ = 0;
};

// A double-array trie over bytes: child(n, b) is base[n] + b where check says so.
class Trie {
 public:
  explicit Trie(const std::vector<std::pair<std::string, int32_t>>& items);
  struct Node {
    int32_t base = 0, check = -1, id = -1;
  };
  static constexpr int32_t kRoot = 0, kNone = -1;
  int32_t child(int32_t n, unsigned char b) const {
    const auto c = static_cast<size_t>(nodes_[static_cast<size_t>(n)].base + b);
    return c < nodes_.size() && nodes_[c].check == n ? static_cast<int32_t>(c) : kNone;
  }
  int32_t id(int32_t n) const { return nodes_[static_cast<size_t>(n)].id; }

 private:
  std::vector<Node> nodes_;
};

struct SpecialIds {
  int32_t pad, cls, sep, unk;
};

// Where a text's ids end: `store` ids are kept, and counting goes on (for rules that need the true length) if
// count_all.
struct Limit {
  size_t store = SIZE_MAX;
  bool count_all = false;
};

// The tokens of texts and where they lie, one element a token: the characters [start, end) of the text as it was given,
// and the number of the word (a run without white space, a punctuation mark, a special token) within its text.
struct Spans {
  Ids ids, starts, ends, words;
};

// Immutable once built, shared by threads. Each call borrows a cache; caches wait in atomic slots, so there is no lock
// that a fork could leave taken.
class Tokenizer {
 public:
  virtual ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Appends at most limit.store ids of the text; returns its number of tokens (at least limit.store where it stopped).
  size_t encode(std::string_view text, Limit limit, ChunkCache& cache, Ids& out) const;

  // Appends every token of the text with its place. `lowered` is the text as encode() takes it.
  virtual void encode_spans(std::string_view text, std::string_view lowered, Spans& out) const = 0;

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
  // Appends the ids of one raw chunk without spaces, stopping once `limit` ids of it are there and count_all is false
  // (ids beyond limit are then not stored); returns their number.
  virtual size_t encode_chunk(std::string_view chunk, Limit limit, Ids& out) const = 0;

 private:
  mutable std::array<std::atomic<ChunkCache*>, 16> idle_{};
};

// text.split() of lowered text. ASCII is lowered here; other text must come lowered by Python.
class WordTokenizer final : public Tokenizer {
 public:
  WordTokenizer(const std::vector<std::pair<std::string, int32_t>>& vocab, SpecialIds ids);
  void encode_spans(std::string_view text, std::string_view lowered, Spans& out) const override;

 protected:
  size_t encode_chunk(std::string_view chunk, Limit limit, Ids& out) const override;

 private:
  StringMap map_;
};

class WordPieceTokenizer final : public Tokenizer {
 public:
  WordPieceTokenizer(const std::vector<std::pair<std::string, int32_t>>& vocab, SpecialIds ids,
                     std::vector<std::pair<std::string, int32_t>> literals, bool lowercase);
  void encode_spans(std::string_view text, std::string_view lowered, Spans& out) const override;

 protected:
  size_t encode_chunk(std::string_view chunk, Limit limit, Ids& out) const override;

 private:
  template <class Trace>
  class Writer;
  // False where the word is unknown, whatever on_piece(end of the piece in bytes) was told before.
  template <class OnPiece>
  bool encode_word(std::string_view word, Ids& out, const OnPiece& on_piece) const;
  template <class Trace>
  size_t encode_traced(std::string_view text, Limit limit, Ids& out, Trace trace) const;

  Trie trie_;
  int32_t continuation_;                                   // the trie's node behind "##", or kNone
  std::vector<std::pair<std::string, int32_t>> literals_;  // special tokens found in the text itself
  bool lowercase_;
  std::array<uint8_t, 128> ascii_;  // 0 deleted, 1 space, 2 punctuation, else the (lowered) character
};

}  // namespace bertnli

#include "tokenizer.h"

#include <algorithm>
#include <bit>

#include "blocks.h"

namespace bertnli {

Tokenizer::~Tokenizer() {
  for (auto& slot : idle_) delete slot.load();
}

Tokenizer::CacheLoan::CacheLoan(const Tokenizer& owner) : owner_(owner) {
  for (auto& slot : owner_.idle_) {
    cache_.reset(slot.exchange(nullptr, std::memory_order_acquire));
    if (cache_) return;
  }
  cache_ = std::make_unique<ChunkCache>();
}

Tokenizer::CacheLoan::~CacheLoan() {
  for (auto& slot : owner_.idle_) {
    ChunkCache* empty = nullptr;
    if (slot.compare_exchange_strong(empty, cache_.get(), std::memory_order_release)) {
      (void)cache_.release();
      return;
    }
  }
}

namespace {

// Chunks end at spaces.
struct Spaces {
  bool block(const char* p, size_t readable, size_t, uint64_t& separators) {
    separators = block_mask(p, readable, [](Lane v) { return v.equal(' '); });
    return true;
  }
};

// Chunks end at spaces and brackets. block() returns false where extract_text() does more: it joins the parts of a word
// with a bracket inside, and knows other white space.
struct SpacesAndBrackets {
  bool block(const char* p, size_t readable, size_t size, uint64_t& separators) {
    const uint64_t inside = size < 64 ? (uint64_t{1} << size) - 1 : ~uint64_t{0};
    const uint64_t odd = block_mask(p, readable, [](Lane v) { return v.under_or_high(' '); });
    const uint64_t spaces = block_mask(p, readable, [](Lane v) { return v.equal(' '); });
    const uint64_t brackets = block_mask(p, readable, [](Lane v) { return v.bracket(); }) & inside;
    separators = spaces | brackets;
    const uint64_t words = ~separators & inside;
    const uint64_t touch = (brackets & (words << 1 | last_word)) | (words & (brackets << 1 | last_bracket));
    last_word = words >> 63;
    last_bracket = brackets >> 63;
    return ((odd & inside) | touch) == 0;
  }
  uint64_t last_word = 0, last_bracket = 0;
};

}  // namespace

template <class Separators>
bool Tokenizer::encode_blocks(std::string_view text, const char* readable, Limit limit, ChunkCache& cache,
                              IdBuffer& out, size_t& count, Separators separators) const {
  // Loads read 16 bytes that end with the readable ones; a shorter text is copied to a place where they can.
  const char *p = text.data(), *end = p + text.size();
  char copy[16];
  if (readable - p < 16) {
    std::memset(copy, ' ', sizeof copy);
    if (!text.empty()) std::memcpy(copy, p, text.size());
    p = copy;
    end = copy + text.size();
    readable = copy + sizeof copy;
  }
  const size_t begin = out.size();
  const char* const last16 = readable - 16;
  constexpr size_t kBlockIds =
      34 * kMostShortIds;  // ids of a block's chunks and of one before and one after it, with a reserve
  using Bucket = ChunkCache::Bucket;
  Bucket* const buckets = cache.buckets();
  const char* start = p;  // of the current chunk
  bool within = false;    // a chunk goes on from the previous block
  size_t dropped = 0;     // tokens that were counted but not stored
  // A separate function, so that the loop keeps its values in registers.
  const auto miss = [&](std::string_view piece, ChunkKey key, Bucket* bucket, int32_t* to) __attribute__((noinline)) {
    if (bucket != nullptr) {
      int32_t* const behind = encode_short_chunk(piece, key, to);
      const auto got = static_cast<size_t>(behind - to);
      if (got <= ChunkCache::kMaxIds) bucket->insert(key, to, got);
      return behind;
    }
    out.end_at(to);
    const size_t before = out.size(), stored = std::min(before - begin, limit.store);
    const size_t got = encode_chunk(piece, {limit.store - stored, limit.count_all}, out);
    dropped += got - (out.size() - before);
    return out.room(kBlockIds);
  };
  const auto chunk = [&](const char* stop, int32_t* to) {
    const auto n = static_cast<size_t>(stop - start);
    if (n > ChunkKey::kMaxSize) [[unlikely]]
      return miss({start, n}, {}, nullptr, to);
    const Bytes16 bytes =
        start <= last16 ? Bytes16::load(start) : Bytes16::load(last16).drop(static_cast<unsigned>(start - last16));
    const ChunkKey key = ChunkKey::of(bytes, n);
    Bucket& bucket = buckets[ChunkCache::place(key)];
    const ChunkCache::Slot* hit = bucket.find(key);
    if (hit == nullptr) [[unlikely]]
      return miss({start, n}, key, &bucket, to);
    std::memcpy(to, hit->ids, 16);  // (the count is copied too, and overwritten by the next ids)
    return to + hit->count;
  };
  for (; p < end; p += 64) {
    const auto size = std::min<size_t>(64, static_cast<size_t>(end - p));
    uint64_t gaps;
    if (!separators.block(p, static_cast<size_t>(readable - p), size, gaps)) {
      out.resize_down(begin);
      return false;
    }
    if (size < 64) gaps |= ~uint64_t{0} << size;
    uint64_t edges = ~gaps ^ (~gaps << 1 | static_cast<uint64_t>(within));  // where a chunk starts or has ended
    const auto next_edge = [&] {
      const char* edge = p + std::countr_zero(edges);
      edges &= edges - 1;
      return edge;
    };
    int32_t* to = out.room(kBlockIds);
    if (!within && edges != 0) start = next_edge();
    while (edges != 0) {
      to = chunk(next_edge(), to);
      if (edges == 0) break;
      start = next_edge();
    }
    within = (gaps >> 63) == 0;
    if (within && p + 64 >= end) to = chunk(end, to);
    out.end_at(to);
    if (out.size() - begin >= limit.store) {
      dropped += out.size() - begin - limit.store;
      out.resize_down(begin + limit.store);
      if (!limit.count_all) break;
    }
  }
  count = out.size() - begin + dropped;
  return true;
}

size_t Tokenizer::encode(std::string_view text, const char* readable, Limit limit, ChunkCache& cache,
                         IdBuffer& out) const {
  size_t count = 0;
  encode_blocks(text, readable, limit, cache, out, count, Spaces());
  return count;
}

bool Tokenizer::encode_parse(std::string_view parse, const char* readable, Limit limit, ChunkCache& cache,
                             IdBuffer& out, size_t& count) const {
  return encode_blocks(parse, readable, limit, cache, out, count, SpacesAndBrackets());
}

}  // namespace bertnli

#include "chunk_cache.h"

#include <bit>

namespace bertnli {

static_assert(std::endian::native == std::endian::little, "chunk keys are loaded and shifted as little-endian words");

void ChunkCache::Bucket::insert(ChunkKey k, const int32_t* ids, size_t n) {
  // The length, in hi, is never 0 in a full slot. Whoever came first is most likely the more frequent, and stays,
  // unless it is where find() would look for this one.
  Slot& slot = slots[slots[0].key.hi != 0 && slots[0].key.lo != k.lo];
  slot.key = k;
  for (size_t i = 0; i < kMaxIds; ++i) slot.ids[i] = i < n ? ids[i] : 0;  // (too few for a call)
  slot.count = static_cast<int32_t>(n);
}

}  // namespace bertnli

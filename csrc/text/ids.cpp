#include "ids.h"

#include <algorithm>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bertnli {

void advise_huge(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHuge - 1);
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

void Ids::grow(size_t more) {
  if (!grow_to(std::max(size_ + more, capacity_ + capacity_ / 2 + 64)) && !grow_to(size_ + more)) {
    throw std::bad_alloc();
  }
}

bool Ids::grow_to(size_t capacity) {
  if (capacity > SIZE_MAX / sizeof(int32_t)) return false;
  void* p = std::realloc(data_, capacity * sizeof(int32_t));
  if (p == nullptr) return false;
  data_ = static_cast<int32_t*>(p);
  capacity_ = capacity;
  advise_huge(data_ + size_, (capacity_ - size_) * sizeof(int32_t));
  return true;
}

void Ids::shrink() {
  if (void* p = std::realloc(data_, (size_ + 1) * sizeof(int32_t))) {
    data_ = static_cast<int32_t*>(p);
    capacity_ = size_ + 1;
  }
}

}  // namespace bertnli

#include "buffers.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bertnli {

#if defined(__linux__)

namespace {

constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kMostKept = size_t{1} << 28;

std::array<std::atomic<Buffer*>, 2> kept{};  // no lock, which a fork could leave taken

void unmap(Buffer* buffer) noexcept {
  munmap(buffer->data, buffer->bytes);
  delete buffer;
}

}  // namespace

Buffer* take_buffer(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  bytes = (bytes + kHugePage - 1) & ~(kHugePage - 1);
  for (auto& slot : kept) {
    Buffer* buffer = slot.exchange(nullptr, std::memory_order_acquire);
    if (buffer == nullptr) continue;
    if (buffer->bytes >= bytes && buffer->bytes / 2 <= bytes) return buffer;
    Buffer* empty = nullptr;
    if (!slot.compare_exchange_strong(empty, buffer, std::memory_order_acq_rel)) unmap(buffer);
  }
  auto buffer = std::make_unique<Buffer>();
  const size_t mapped = bytes + kHugePage;
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  char* const begin = static_cast<char*>(p);
  const size_t before = -reinterpret_cast<uintptr_t>(p) & (kHugePage - 1);  // to where a huge page can begin
  if (before != 0) munmap(begin, before);
  munmap(begin + before + bytes, mapped - before - bytes);
  *buffer = {begin + before, bytes};
  (void)madvise(buffer->data, bytes, MADV_HUGEPAGE);
  return buffer.release();
}

void give_buffer(Buffer* buffer) noexcept {
  if (buffer->bytes > kMostKept || madvise(buffer->data, buffer->bytes, MADV_FREE) != 0) return unmap(buffer);
  for (auto& slot : kept) {
    Buffer* empty = nullptr;
    if (slot.compare_exchange_strong(empty, buffer, std::memory_order_acq_rel)) return;
  }
  if (Buffer* old = kept[0].exchange(buffer, std::memory_order_acq_rel)) unmap(old);
}

#else

Buffer* take_buffer(size_t bytes) {
  auto buffer = std::make_unique<Buffer>();
  *buffer = {std::malloc(bytes), bytes};
  if (buffer->data == nullptr) throw std::bad_alloc();
  return buffer.release();
}

void give_buffer(Buffer* buffer) noexcept {
  std::free(buffer->data);
  delete buffer;
}

#endif

}  // namespace bertnli

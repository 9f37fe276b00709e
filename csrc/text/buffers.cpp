#include "buffers.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace bertnli {

#if defined(__linux__)

namespace {

// Buffers kept for reuse. Without a lock, since a fork could leave it locked.
struct Kept {
  const size_t most;  // bytes, in all
  std::array<std::atomic<Buffer*>, 32> slots{};
  std::atomic<size_t> bytes{0};
};
Kept small_ones{size_t{1} << 23}, large_ones{size_t{1} << 29};

bool is_small(size_t bytes) { return bytes < kHugePage; }
Kept& kept_like(size_t bytes) { return is_small(bytes) ? small_ones : large_ones; }

// Rounded up to whole huge pages if there is at least one.
size_t rounded(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  const size_t unit = bytes >= kHugePage ? kHugePage : kLeastBuffer;
  return (bytes + unit - 1) & ~(unit - 1);
}

Buffer map(size_t bytes) {
  const size_t spare = bytes >= kHugePage ? kHugePage : 0;  // to align the begin to a huge page
  const int now = spare == 0 ? MAP_POPULATE : 0;            // faster than a page fault for each small page
  void* p = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | now, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  char* const begin = static_cast<char*>(p);
  if (spare == 0) return {begin, bytes};
  const size_t before = -reinterpret_cast<uintptr_t>(p) & (kHugePage - 1);
  if (before != 0) munmap(begin, before);
  if (before != spare) munmap(begin + before + bytes, spare - before);
  (void)madvise(begin + before, bytes, MADV_HUGEPAGE);  // a page fault costs as much as writing 16 KB
  return {begin + before, bytes};
}

void unmap(Buffer* buffer) noexcept {
  munmap(buffer->data, buffer->bytes);
  delete buffer;
}

Buffer* take_from(std::atomic<Buffer*>& slot) {
  if (slot.load(std::memory_order_relaxed) == nullptr) return nullptr;
  return slot.exchange(nullptr, std::memory_order_acq_rel);
}

bool put_into(std::atomic<Buffer*>& slot, Buffer* buffer) {
  Buffer* empty = nullptr;
  return slot.compare_exchange_strong(empty, buffer, std::memory_order_acq_rel);
}

}  // namespace

Buffer* take_buffer(size_t bytes) {
  bytes = rounded(bytes);
  Kept& kept = kept_like(bytes);
  for (auto& slot : kept.slots) {
    Buffer* buffer = take_from(slot);
    if (buffer == nullptr) continue;
    const bool fits = buffer->bytes >= bytes && buffer->bytes / 2 <= bytes;
    if (!fits && put_into(slot, buffer)) continue;
    kept.bytes -= buffer->bytes;
    if (fits) return buffer;
    unmap(buffer);
  }
  auto buffer = std::make_unique<Buffer>();
  *buffer = map(bytes);
  return buffer.release();
}

void grow_buffer(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.bytes) return;
  const Buffer larger = map(rounded(bytes));
  constexpr int kMove = MREMAP_MAYMOVE | MREMAP_FIXED;  // replaces the first pages there
  if (mremap(buffer.data, buffer.bytes, buffer.bytes, kMove, larger.data) == MAP_FAILED) {
    munmap(larger.data, larger.bytes);
    throw std::bad_alloc();
  }
  buffer = larger;
}

void trim_buffer(Buffer& buffer, size_t bytes) noexcept {
  bytes = rounded(std::max<size_t>(bytes, 1));
  if (bytes >= buffer.bytes / 2) return;
  munmap(static_cast<char*>(buffer.data) + bytes, buffer.bytes - bytes);
  buffer.bytes = bytes;
}

void give_buffer(Buffer* buffer) noexcept {
  Kept& kept = kept_like(buffer->bytes);
  if (buffer->bytes > kept.most / 2) return unmap(buffer);
  if (!is_small(buffer->bytes) && madvise(buffer->data, buffer->bytes, MADV_FREE) != 0) return unmap(buffer);
  size_t all = kept.bytes += buffer->bytes;
  const auto give_up = [&](Buffer* old) {
    if (old == nullptr) return;
    all = kept.bytes -= old->bytes;
    unmap(old);
  };
  for (auto& slot : kept.slots) {
    if (all > kept.most) give_up(take_from(slot));
    if (all <= kept.most && put_into(slot, buffer)) return;
  }
  give_up(kept.slots[0].exchange(buffer, std::memory_order_acq_rel));  // no slot is free
}

void check_memory(size_t count, size_t size) {
  const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (size != 0 && count > memory / size) throw std::bad_alloc();
}

#else

void check_memory(size_t, size_t) {}

Buffer* take_buffer(size_t bytes) {
  auto buffer = std::make_unique<Buffer>();
  *buffer = {std::malloc(bytes), bytes};
  if (buffer->data == nullptr) throw std::bad_alloc();
  return buffer.release();
}

void grow_buffer(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.bytes) return;
  void* p = std::realloc(buffer.data, bytes);
  if (p == nullptr) throw std::bad_alloc();
  buffer = {p, bytes};
}

void trim_buffer(Buffer& buffer, size_t bytes) noexcept {
  if (void* p = std::realloc(buffer.data, std::max<size_t>(bytes, 1))) buffer = {p, bytes};
}

void give_buffer(Buffer* buffer) noexcept {
  std::free(buffer->data);
  delete buffer;
}

#endif

}  // namespace bertnli

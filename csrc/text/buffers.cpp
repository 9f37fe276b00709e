#include "buffers.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "../system.h"

namespace bertnli {

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

Buffer allocate(size_t bytes) {
  if (!kMapsPages) {
    void* p = std::malloc(bytes);
    if (p == nullptr) throw std::bad_alloc();
    return {p, bytes};
  }
  const size_t spare = bytes >= kHugePage ? kHugePage : 0;  // to align the begin to a huge page
  char* p = map_pages(bytes + spare, spare == 0 ? Pages::kAtOnce : Pages::kAtFirstTouch);
  if (p == nullptr) throw std::bad_alloc();
  if (spare == 0) return {p, bytes};
  const size_t before = -reinterpret_cast<uintptr_t>(p) & (kHugePage - 1);
  if (before != 0) unmap_pages(p, before);
  if (before != spare) unmap_pages(p + before + bytes, spare - before);
  prefer_huge_pages(p + before, bytes);  // a page fault costs as much as writing 16 KB
  return {p + before, bytes};
}

void release(Buffer* buffer) noexcept {
  if (kMapsPages)
    unmap_pages(buffer->data, buffer->bytes);
  else
    std::free(buffer->data);
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
    release(buffer);
  }
  auto buffer = std::make_unique<Buffer>();
  *buffer = allocate(bytes);
  return buffer.release();
}

void grow_buffer(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.bytes) return;
  bytes = rounded(bytes);
  if (!kMapsPages) {
    void* p = std::realloc(buffer.data, bytes);
    if (p == nullptr) throw std::bad_alloc();
    buffer = {p, bytes};
    return;
  }
  const Buffer larger = allocate(bytes);
  if (!move_pages(buffer.data, buffer.bytes, larger.data)) {
    unmap_pages(larger.data, larger.bytes);
    throw std::bad_alloc();
  }
  buffer = larger;
}

void trim_buffer(Buffer& buffer, size_t bytes) noexcept {
  bytes = rounded(std::max<size_t>(bytes, 1));
  if (bytes >= buffer.bytes / 2) return;
  if (kMapsPages) {
    unmap_pages(static_cast<char*>(buffer.data) + bytes, buffer.bytes - bytes);
    buffer.bytes = bytes;
  } else if (void* p = std::realloc(buffer.data, bytes)) {
    buffer = {p, bytes};
  }
}

void give_buffer(Buffer* buffer) noexcept {
  Kept& kept = kept_like(buffer->bytes);
  if (buffer->bytes > kept.most / 2) return release(buffer);
  if (!is_small(buffer->bytes) && !offer_pages(buffer->data, buffer->bytes)) return release(buffer);
  size_t all = kept.bytes += buffer->bytes;
  const auto give_up = [&](Buffer* old) {
    if (old == nullptr) return;
    all = kept.bytes -= old->bytes;
    release(old);
  };
  for (auto& slot : kept.slots) {
    if (all > kept.most) give_up(take_from(slot));
    if (all <= kept.most && put_into(slot, buffer)) return;
  }
  give_up(kept.slots[0].exchange(buffer, std::memory_order_acq_rel));  // no slot is free
}

void check_memory(size_t count, size_t size) {
  if (size != 0 && count > memory_size() / size) throw std::bad_alloc();
}

}  // namespace bertnli

// Memory of results, reused when a result is freed. Fresh pages are zeroed by the system, which takes longer than
// encoding into them, and malloc may return freed memory to the system at any time.
#pragma once

#include <cstddef>

namespace bertnli {

struct Buffer {
  void* data;
  size_t bytes;
};

constexpr size_t kLeastBuffer = size_t{1} << 16;
constexpr size_t kHugePage = size_t{1} << 21;  // buffers of this size and larger are in huge pages

// A buffer of at least `bytes` bytes with undefined content. This and grow_buffer() throw std::bad_alloc.
Buffer* take_buffer(size_t bytes);
// Makes the buffer at least that large by remapping its pages, without a copy.
void grow_buffer(Buffer& buffer, size_t bytes);
// Frees the rest of a buffer if `bytes` is less than half of its size.
void trim_buffer(Buffer& buffer, size_t bytes) noexcept;
// Frees a buffer, or keeps it for reuse: a few megabytes of small buffers, and many larger ones, which are marked so
// that the system may take their memory when it needs some.
void give_buffer(Buffer* buffer) noexcept;
// Throws std::bad_alloc if `count` times `size` bytes are more than the machine's memory. The system may grant each of
// several buffers, and end the process when they are written.
void check_memory(size_t count, size_t size);

}  // namespace bertnli

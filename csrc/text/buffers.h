// Memory of results, used again once they are gone: the system would hand it out zeroed, which takes longer than
// encoding into it, in a virtual machine many times as long, and what malloc keeps it may give back to the system at
// any time.
#pragma once

#include <cstddef>

namespace bertnli {

struct Buffer {
  void* data;
  size_t bytes;
};

constexpr size_t kLeastBuffer = size_t{1} << 16;
constexpr size_t kHugePage = size_t{1} << 21;  // buffers that large lie in huge pages

// Of at least so many bytes, whatever they contain. Throws std::bad_alloc, as does the next.
Buffer* take_buffer(size_t bytes);
// Makes it at least that large; pages move, not bytes.
void grow_buffer(Buffer& buffer, size_t bytes);
// Gives the end of a buffer back if so many bytes are less than half of it.
void trim_buffer(Buffer& buffer, size_t bytes) noexcept;
// The last ones of moderate size are kept: a few megabytes of small ones, and many of larger ones, which are marked, so
// that the system takes their memory whenever it needs some.
void give_buffer(Buffer* buffer) noexcept;

}  // namespace bertnli

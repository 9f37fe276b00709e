// Memory of large results, used again once they are gone: the system would hand it out zeroed, which takes longer than
// encoding into it.
#pragma once

#include <cstddef>

namespace bertnli {

struct Buffer {
  void* data;
  size_t bytes;
};

// Of at least so many bytes, whatever they contain. Throws std::bad_alloc.
Buffer* take_buffer(size_t bytes);
// The last two of moderate size are kept, marked so that the system takes their memory whenever it needs some.
void give_buffer(Buffer* buffer) noexcept;

}  // namespace bertnli

// A growing array of token ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "buffers.h"

namespace bertnli {

// Growing remaps pages instead of copying, and writers check the space once for many ids, by room().
class IdBuffer {
 public:
  IdBuffer() = default;
  IdBuffer(const IdBuffer&) = delete;
  IdBuffer& operator=(const IdBuffer&) = delete;
  IdBuffer(IdBuffer&& o) noexcept { swap(o); }
  IdBuffer& operator=(IdBuffer&& o) noexcept {
    swap(o);
    return *this;
  }
  ~IdBuffer();

  int32_t* data() const { return data_; }
  size_t size() const { return size_; }
  void resize_down(size_t n) { size_ = n; }
  // Reserves space for `n` ids in all, if possible. Unused space takes addresses, not memory.
  void reserve(size_t n);
  // Where to write the next ids, with space for `more` of them.
  int32_t* room(size_t more) {
    if (capacity_ - size_ < more) grow(more);
    return data_ + size_;
  }
  // Sets the size after ids were written from room() to `end`.
  void end_at(const int32_t* end) { size_ = static_cast<size_t>(end - data_); }
  void advance(size_t n) { size_ += n; }
  void push(int32_t id) {
    *room(1) = id;
    ++size_;
  }
  // Frees unused space at the end.
  void shrink();

 private:
  void swap(IdBuffer& o) {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(capacity_, o.capacity_);
    std::swap(buffer_, o.buffer_);
  }
  void grow(size_t more);
  void grow_to(size_t capacity);

  int32_t* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
  Buffer* buffer_ = nullptr;  // holds data_; null while data_ is small and from malloc
};

}  // namespace bertnli

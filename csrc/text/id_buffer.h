// The output writer: a growing array of ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "buffers.h"

namespace bertnli {

// Growing moves pages rather than bytes, and room() leaves no check for each id to the writers.
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
  // Space for `n` ids in all, if it can be had: of what is not used the system keeps nothing but the addresses.
  void reserve(size_t n);
  // The place of the next id, with space for `more` ids.
  int32_t* room(size_t more) {
    if (capacity_ - size_ < more) grow(more);
    return data_ + size_;
  }
  // IdBuffer were written from room() up to here.
  void end_at(const int32_t* end) { size_ = static_cast<size_t>(end - data_); }
  void advance(size_t n) { size_ += n; }
  void push(int32_t id) {
    *room(1) = id;
    ++size_;
  }
  // No more will come.
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
  Buffer* buffer_ = nullptr;  // that data_ lies in; of few ids, it is malloc's
};

}  // namespace bertnli

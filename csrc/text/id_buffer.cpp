#include "id_buffer.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace bertnli {

IdBuffer::~IdBuffer() {
  if (buffer_ != nullptr) {
    give_buffer(buffer_);
  } else {
    std::free(data_);
  }
}

void IdBuffer::reserve(size_t n) {
  if (n <= capacity_) return;
  try {
    grow_to(n);
  } catch (const std::bad_alloc&) {
  }
}

void IdBuffer::grow(size_t more) {
  try {
    grow_to(std::max(size_ + more, capacity_ + capacity_ / 2 + 64));
  } catch (const std::bad_alloc&) {
    grow_to(size_ + more);
  }
}

void IdBuffer::grow_to(size_t capacity) {
  if (capacity > SIZE_MAX / sizeof(int32_t)) throw std::bad_alloc();
  const size_t bytes = capacity * sizeof(int32_t);
  if (buffer_ != nullptr) {
    grow_buffer(*buffer_, bytes);
  } else if (bytes >= kHugePage) {
    buffer_ = take_buffer(bytes);
    if (size_ != 0) std::memcpy(buffer_->data, data_, size_ * sizeof(int32_t));
    std::free(data_);
  } else {
    void* p = std::realloc(data_, bytes);
    if (p == nullptr) throw std::bad_alloc();
    data_ = static_cast<int32_t*>(p);
    capacity_ = capacity;
    return;
  }
  data_ = static_cast<int32_t*>(buffer_->data);
  capacity_ = buffer_->bytes / sizeof(int32_t);
}

void IdBuffer::shrink() {
  if (buffer_ == nullptr) return;
  trim_buffer(*buffer_, size_ * sizeof(int32_t));
  data_ = static_cast<int32_t*>(buffer_->data);
  capacity_ = buffer_->bytes / sizeof(int32_t);
}

}  // namespace bertnli

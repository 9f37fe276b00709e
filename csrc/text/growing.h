// A growing array in memory that is reused (see buffers.h). Growing remaps pages instead of copying.
#pragma once

#include <algorithm>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>

#include "buffers.h"

namespace bertnli {

template <class T>
class Growing {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Growing() = default;
  Growing(Growing&& o) noexcept { swap(o); }
  Growing& operator=(Growing&& o) noexcept {
    swap(o);
    return *this;
  }
  ~Growing() {
    if (buffer_ != nullptr) give_buffer(buffer_);
  }

  size_t size() const { return size_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  // Space for n elements in all. Unused space takes addresses, not memory.
  void reserve(size_t n) {
    if (n > capacity_) grow_to(n);
  }
  void push(T element) {
    *room(1) = element;
    ++size_;
  }
  void append(const T* from, size_t n) {
    if (n == 0) return;
    std::memcpy(static_cast<void*>(room(n)), from, n * sizeof(T));
    size_ += n;
  }
  void append(std::string_view text) {
    static_assert(std::is_same_v<T, char>);
    append(text.data(), text.size());
  }
  // Where to write the next elements, with space for `more` of them; advance() counts them.
  T* room(size_t more) {
    if (capacity_ - size_ < more) grow_to(std::max(size_ + more, 2 * capacity_));
    return data_ + size_;
  }
  void advance(size_t n) { size_ += n; }
  // The buffer, with less unused space; null if there are no elements. It is the caller's.
  Buffer* release() {
    if (buffer_ != nullptr) trim_buffer(*buffer_, size_ * sizeof(T));
    data_ = nullptr;
    size_ = capacity_ = 0;
    return std::exchange(buffer_, nullptr);
  }

 private:
  void swap(Growing& o) {
    std::swap(buffer_, o.buffer_);
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(capacity_, o.capacity_);
  }
  void grow_to(size_t n) {
    const size_t bytes = std::max(n * sizeof(T), kLeastBuffer);
    if (buffer_ == nullptr) {
      buffer_ = take_buffer(bytes);
    } else {
      grow_buffer(*buffer_, bytes);
    }
    data_ = static_cast<T*>(buffer_->data);
    capacity_ = buffer_->bytes / sizeof(T);
  }

  Buffer* buffer_ = nullptr;
  T* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

}  // namespace bertnli

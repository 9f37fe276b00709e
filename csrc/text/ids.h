// The output writer: a growing array of ids, and memory that costs few page faults.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace bertnli {

// Asks for huge pages where a large result lies, before it is first touched: a page fault costs as much as 16 KB.
void advise_huge(void* data, size_t bytes);

// realloc moves pages rather than bytes, and room() leaves no check for each id to the writers.
class Ids {
 public:
  Ids() = default;
  Ids(const Ids&) = delete;
  Ids& operator=(const Ids&) = delete;
  Ids(Ids&& o) noexcept { swap(o); }
  Ids& operator=(Ids&& o) noexcept {
    swap(o);
    return *this;
  }
  ~Ids() { std::free(data_); }

  int32_t* data() const { return data_; }
  size_t size() const { return size_; }
  void resize_down(size_t n) { size_ = n; }
  // Space for `n` ids in all, if it can be had: of what is not used the system keeps nothing but the addresses.
  void reserve(size_t n) {
    if (n > capacity_) (void)grow_to(n);
  }
  // The place of the next id, with space for `more` ids.
  int32_t* room(size_t more) {
    if (capacity_ - size_ < more) grow(more);
    return data_ + size_;
  }
  // Ids were written from room() up to here.
  void end_at(const int32_t* end) { size_ = static_cast<size_t>(end - data_); }
  void advance(size_t n) { size_ += n; }
  void push(int32_t id) {
    *room(1) = id;
    ++size_;
  }
  void shrink();
  int32_t* release() { return std::exchange(data_, nullptr); }  // the caller frees it

 private:
  void swap(Ids& o) {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(capacity_, o.capacity_);
  }
  void grow(size_t more);
  bool grow_to(size_t capacity);

  int32_t* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

}  // namespace bertnli

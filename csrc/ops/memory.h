// The memory that operators work in and that a training run's tensors take.
#pragma once
#include <cstddef>

namespace bertnli {

// 64-byte aligned memory of this thread for as long as the object lives, kept for the next one: fresh pages would cost
// more than most kernels. Objects of one thread must die in the reverse of their order, as local variables do.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
};

// From the first `on` of a thread to its last `off`, the memory of the CPU tensors that it makes is kept for its next
// ones.
void keep_memory(bool on);
void give_back_memory();

}  // namespace bertnli

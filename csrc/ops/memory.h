// The memory that operators work in and that a training run's tensors take.
#pragma once
#include <cstddef>
#include <cstdint>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/Tensor.h>
#pragma GCC diagnostic pop

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

// [rows, width] of zeros. Large ones the system provides, in huge pages where it has them: a fresh table's 4 KiB pages
// would cost more time, one fault each, than everything else that is done to it. Up to 32 MiB the C library reuses what
// was freed, which is faster than any fresh page.
at::Tensor fresh_zeros(int64_t rows, int64_t width, at::ScalarType type);

// From the first `on` of a thread to its last `off`, the memory of the CPU tensors that it makes is kept for its next
// ones.
void keep_memory(bool on);
void give_back_memory();

}  // namespace bertnli

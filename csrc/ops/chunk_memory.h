// The memory that a chunk of a batch is encoded in.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace bertnli {

// Cuts buffers out of one block a thread, which is kept for the next chunk while it is of moderate size.
class ChunkMemory {
 public:
  explicit ChunkMemory(size_t bytes) {
    if (size_ < bytes) {
      size_ = 0;  // should the allocation fail
      block_.reset();
      block_.reset(new char[bytes + kLine]);
      size_ = bytes;
    }
    next_ = reinterpret_cast<char*>(rounded(reinterpret_cast<uintptr_t>(block_.get())));
  }
  ~ChunkMemory() {
    if (size_ > kMostKept) block_.reset(), size_ = 0;
  }
  ChunkMemory(const ChunkMemory&) = delete;
  ChunkMemory& operator=(const ChunkMemory&) = delete;

  void* take(size_t bytes) { return std::exchange(next_, next_ + rounded(bytes)); }
  static size_t rounded(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

 private:
  static constexpr size_t kLine = 64, kMostKept = size_t(32) << 20;
  static inline thread_local std::unique_ptr<char[]> block_;
  static inline thread_local size_t size_ = 0;
  char* next_;
};

}  // namespace bertnli

// The memory that operators work in, and that of a training run's tensors.
//
// A training step allocates what the step before it has freed; the C library gives large blocks back to the system
// meanwhile, and a fresh page, cleared and entered in the page table at its first touch, costs more time than most
// operators spend on it.
#include "memory.h"

#include "../system.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#pragma GCC diagnostic pop

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

namespace bertnli {

// ---- scratch ----

namespace {

struct Block {
  std::unique_ptr<char[]> memory;
  size_t size = 0;
};
// A block for each depth of nesting.
struct Stack {
  std::vector<Block> blocks;
  size_t depth = 0;
};
thread_local Stack stack;
constexpr size_t kLargestKept = size_t(32) << 20;

}  // namespace

Scratch::Scratch(size_t bytes) {
  Stack& s = stack;
  if (s.depth == s.blocks.size()) s.blocks.emplace_back();
  Block& block = s.blocks[s.depth];
  if (block.size < bytes + 64) {
    block = {};  // first, so that both need not fit
    block.memory.reset(new char[bytes + 64]);
    block.size = bytes + 64;
  }
  s.depth++;
  data_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block.memory.get()) + 63) / 64 * 64);
}

Scratch::~Scratch() {
  Block& block = stack.blocks[--stack.depth];
  if (block.size > kLargestKept) block = {};
}

// ---- large zeros ----

at::Tensor fresh_zeros(int64_t rows, int64_t width, at::ScalarType type) {
  constexpr size_t huge = size_t(2) << 20;
  const size_t bytes = (size_t(rows) * width * c10::elementSize(type) + huge - 1) / huge * huge;
  if (bytes > 16 * huge) {
    if (char* const memory = map_pages(bytes + huge, Pages::kAtFirstTouch)) {
      char* start = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + huge - 1) / huge * huge);
      prefer_huge_pages(start, bytes);
      return at::from_blob(
          start, {rows, width}, [memory, bytes](void*) { unmap_pages(memory, bytes + huge); }, at::dtype(type));
    }
  }
  return at::zeros({rows, width}, at::dtype(type));
}

// ---- tensors ----

namespace {

// Hands out one range of addresses, as large as the machine's memory, in huge pages where the system has them. Freed
// blocks are joined with free neighbours, and a block comes from the smallest free one that holds it. What is small, or
// finds no room, or is for a thread that does not train, comes from the allocator that torch had before.
class TrainingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes < kLeast || here_ <= 0 ? nullptr : take(bytes);
    if (!memory) memory = before_->raw_allocate(bytes);
    return {memory, memory, release, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  void begin() {
    const std::lock_guard<std::mutex> lock(mutex_);
    here_++;
    if (users_++ || !reserved()) return;
    before_ = c10::GetCPUAllocator();
    c10::SetCPUAllocator(this);
  }
  void end() {
    const std::lock_guard<std::mutex> lock(mutex_);
    here_--;
    if (--users_ == 0 && begin_) c10::SetCPUAllocator(before_);
  }
  // Blocks that are in use stay.
  void give_back() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [place, size] : by_place_) {
      const size_t page = page_size(), ahead = size_t(-reinterpret_cast<uintptr_t>(place)) % page;
      if (size > ahead + page) give_back_pages(place + ahead, (size - ahead) / page * page);
    }
  }

 private:
  static constexpr size_t kLeast = 64 << 10, kLine = 64;

  // A block's size stands in the line before it.
  static size_t& size_of(char* block) { return *reinterpret_cast<size_t*>(block); }

  bool reserved() {
    if (begin_ || !kMapsPages) return begin_;
    const size_t size = memory_size();
    char* const range = map_pages(size, Pages::kMoreThanThereAre);
    if (!range) return false;
    prefer_huge_pages(range, size);
    begin_ = range;
    end_ = begin_ + size;
    insert(begin_, size);
    at_fork(before_fork, after_fork);  // a child has no thread that would unlock what is locked
    return true;
  }

  void insert(char* place, size_t size) {
    by_place_.emplace(place, size);
    by_size_.emplace(size, place);
  }
  void erase(std::map<char*, size_t>::iterator block) {
    by_size_.erase({block->second, block->first});
    by_place_.erase(block);
  }

  void* take(size_t bytes) {
    const size_t size = (bytes + kLine - 1) / kLine * kLine + kLine;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_size_.lower_bound({size, nullptr});
    if (found == by_size_.end()) return nullptr;
    const auto [whole, block] = *found;
    erase(by_place_.find(block));
    if (whole > size) insert(block + size, whole - size);
    size_of(block) = size;
    return block + kLine;
  }

  void give(char* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t size = size_of(block);
    const auto after = by_place_.lower_bound(block);
    if (after != by_place_.begin())
      if (const auto left = std::prev(after); left->first + left->second == block) {
        block = left->first;
        size += left->second;
        erase(left);
      }
    if (after != by_place_.end() && after->first == block + size) {
      size += after->second;
      erase(after);
    }
    insert(block, size);
  }

  static void release(void* memory);
  static void before_fork();
  static void after_fork();

  static thread_local int here_;  // users of this thread
  std::mutex mutex_;
  int users_ = 0;
  c10::Allocator* before_ = nullptr;
  char *begin_ = nullptr, *end_ = nullptr;
  std::map<char*, size_t> by_place_;
  std::set<std::pair<size_t, char*>> by_size_;
};

thread_local int TrainingAllocator::here_ = 0;

// Never destroyed: tensors may outlive it.
TrainingAllocator& training_allocator() {
  static TrainingAllocator* const one = new TrainingAllocator;
  return *one;
}

void TrainingAllocator::release(void* memory) {
  TrainingAllocator& k = training_allocator();
  char* place = static_cast<char*>(memory);
  if (place >= k.begin_ && place < k.end_)
    k.give(place - kLine);
  else
    k.before_->raw_deallocate(memory);
}

void TrainingAllocator::before_fork() { training_allocator().mutex_.lock(); }
void TrainingAllocator::after_fork() { training_allocator().mutex_.unlock(); }

}  // namespace

void keep_memory(bool on) { on ? training_allocator().begin() : training_allocator().end(); }
void give_back_memory() { training_allocator().give_back(); }

}  // namespace bertnli

// Lines of tab-separated fields at memory speed: each block of 64 bytes is searched once for tabs, line ends and bytes
// beyond ASCII.
#pragma once

#include <bit>
#include <cstring>
#include <string_view>
#include <vector>

#include "blocks.h"

namespace bertnli {

class TsvScanner {
 public:
  // Only the first `wanted` fields of each line are stored.
  TsvScanner(const char* begin, const char* end, size_t wanted)
      : block_(begin), next_(begin), end_(end), tabs_(wanted) {
    if (begin < end) look();
  }
  // Moves to the next line; \n, \r\n and \r end one (and \r\n an empty one besides). False behind the last.
  bool next() {
    if (next_ >= end_) return false;
    begin_ = next_;
    fields_ = 1;
    bool high = false;
    for (;;) {
      while (marks_ == 0) {
        high |= high_ != 0;
        if (end_ - block_ <= 64) {
          finish(end_, end_, high);
          return true;
        }
        block_ += 64;
        look();
      }
      const int bit = std::countr_zero(marks_);
      marks_ &= marks_ - 1;
      const char* at = block_ + bit;
      if (*at == '\t') {
        if (fields_ <= tabs_.size()) tabs_[fields_ - 1] = at;
        ++fields_;
      } else if (*at == '\n' || *at == '\r') {
        const uint64_t before = (uint64_t{1} << bit) - 1;
        high |= (high_ & before) != 0;
        high_ &= ~before;
        finish(at, at + 1, high);
        return true;
      }
    }
  }
  std::string_view line() const { return {begin_, static_cast<size_t>(stop_ - begin_)}; }
  size_t fields() const { return fields_; }  // at least 1
  bool ascii() const { return ascii_; }
  std::string_view field(size_t i) const {
    const char* from = i == 0 ? begin_ : tabs_[i - 1] + 1;
    const char* to = i + 1 < fields_ ? tabs_[i] : stop_;
    return {from, static_cast<size_t>(to - from)};
  }

 private:
  void finish(const char* stop, const char* next, bool high) {
    stop_ = stop;
    next_ = next;
    ascii_ = !high;
  }
  // The hardware prefetcher stops at the end of a page.
  static constexpr size_t kAhead = 1024;
  void look() {
    const auto size = static_cast<size_t>(end_ - block_);
    const char* p = block_;
    if (size > kAhead) __builtin_prefetch(p + kAhead);
    char copy[64];
    if (size < 64) {
      std::memset(copy, ' ', sizeof copy);
      std::memcpy(copy, p, size);
      p = copy;
    }
    marks_ = block_mask(p, 64, [](Lane v) { return v.under_or_high('\r' + 1); });
    high_ = 0;
    if (any_high(p)) {
      high_ = block_mask(p, 64, [](Lane v) { return v.high(); });
      marks_ &= ~high_;
    }
  }

  const char *block_, *begin_ = nullptr, *stop_ = nullptr, *next_, *end_;
  uint64_t marks_ = 0, high_ = 0;  // bits of the block at block_ that are not used yet
  std::vector<const char*> tabs_;
  size_t fields_ = 0;
  bool ascii_ = true;
};

}  // namespace bertnli

// How the operators share their work among threads. No result depends on it: a share computes what it would compute
// alone.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/Parallel.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

namespace bertnli {

// Costs are in multiplications by vectors of floats. A thread is woken for so many.
constexpr double kWorthAThread = 200'000;
// What an element costs that is read, computed and written; one that is only moved costs a quarter.
constexpr double kPerElement = 12, kPerMove = 3;

// How many threads share work of that cost.
inline int64_t threads_for(double cost) {
  return cost < kWorthAThread || at::in_parallel_region() ? 1 : at::get_num_threads();
}

// Calls work(begin, end) for parts of 0 to `count`, of at least `least`, where each costs `cost`.
template <class F>
void share(int64_t count, double cost, const F& work, int64_t least = 1) {
  at::parallel_for(0, count, std::max(least, int64_t(kWorthAThread / std::max(1.0, cost))), work);
}

// Calls work(i) for each i below `count`, which costs cost(i): the longest first, each thread taking the next, so that
// none is left with a long one at the end.
template <class Cost, class F>
void share_longest_first(int64_t count, const Cost& cost, const F& work) {
  double total = 0;
  for (int64_t i = 0; i < count; i++) total += double(cost(i));
  const int64_t threads = std::min(count, threads_for(total));
  if (threads <= 1) {
    for (int64_t i = 0; i < count; i++) work(i);
    return;
  }
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return cost(x) > cost(y); });
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(order[i]);
  });
}

}  // namespace bertnli

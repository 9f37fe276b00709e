// Threads for one call: started, joined and gone before it returns, so nothing is alive when a process forks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace bertnli {

// Calls work(part) for part 0 to parts-1, each in its own thread (part 0 in this one). Of several exceptions, the one
// of the lowest part is thrown, so that an error message does not depend on timing.
template <class Work>
void run_parts(size_t parts, const Work& work) {
  std::vector<std::exception_ptr> errors(parts);
  const auto guarded = [&](size_t part) noexcept {
    try {
      work(part);
    } catch (...) {
      errors[part] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(parts);
  size_t started = 1;
  try {
    for (; started < parts; ++started) threads.emplace_back(guarded, started);
  } catch (const std::system_error&) {
    // no more threads to be had: the rest is done here
  }
  guarded(0);
  for (size_t part = std::max<size_t>(started, 1); part < parts; ++part) guarded(part);
  for (std::thread& t : threads) t.join();
  for (const std::exception_ptr& e : errors) {
    if (e) std::rethrow_exception(e);
  }
}

}  // namespace bertnli

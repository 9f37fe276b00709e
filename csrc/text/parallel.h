// Threads for one call. They are joined before it returns, so that no thread exists when a process forks.
#pragma once

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace bertnli {

// How many threads to start for so many rows: fewer than 512 rows are done before a thread has started.
inline size_t part_count(size_t rows, int threads) {
  return std::clamp<size_t>(rows / 512, 1, static_cast<size_t>(std::max(threads, 1)));
}

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
    // the system has no more threads: this one does the rest
  }
  guarded(0);
  for (size_t part = std::max<size_t>(started, 1); part < parts; ++part) guarded(part);
  for (std::thread& t : threads) t.join();
  for (const std::exception_ptr& e : errors) {
    if (e) std::rethrow_exception(e);
  }
}

// The rows [0, n) in pieces. A thread that has finished a piece takes the next one, since threads start at different
// times and pieces take different times. The calling thread alone prepares the rows, a stretch of many pieces at a
// time.
class Pieces {
 public:
  static constexpr size_t kPiece = 256, kStretch = 8192,
                          kReady = 2 * kStretch;  // rows; kReady: most rows that are ready at a time
  // prepare(over, begin, end) makes rows [begin, end) ready; rows before `over` are done. Null if all rows are ready.
  using Prepare = std::function<void(size_t over, size_t begin, size_t end)>;

  Pieces(size_t n, size_t threads, const Prepare& prepare)
      : threads_(threads), stretches_(threads > 1 ? 2 : 1), prepare_(prepare), n_(n), ready_(prepare ? 0 : n) {}
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;

  // The pieces of one thread.
  class Turn {
   public:
    // Finishes the current piece and takes the next one, [begin, end). False if there is none.
    bool next() { return pieces_.next(*this); }
    size_t begin = 0, end = 0;

   private:
    friend Pieces;
    Turn(Pieces& pieces, bool prepares) : pieces_(pieces), prepares_(prepares) {}
    Pieces& pieces_;
    const bool prepares_;
  };

  // Calls body(turn) in each thread. Of several exceptions, the one of the lowest row is thrown, as without threads:
  // pieces are taken in order, and those before a broken one are finished.
  template <class Body>
  void run(const Body& body) {
    run_parts(threads_, [&](size_t part) {
      Turn turn(*this, part == 0);
      try {
        body(turn);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_ || turn.begin < error_row_) {
          error_ = std::current_exception();
          error_row_ = turn.begin;
        }
        stop(next_);
      }
    });
    if (error_) std::rethrow_exception(error_);
    if (unready_) std::rethrow_exception(unready_);
  }

 private:
  // No piece from this row on is started any more.
  void stop(size_t row) {
    n_ = std::min(n_, row);
    changed_.notify_all();
  }
  size_t& unfinished(size_t row) { return unfinished_[row / kStretch % stretches_]; }
  bool next(Turn& turn) {
    std::unique_lock lock(mutex_);
    if (prepare_ && turn.begin != turn.end && (unfinished(turn.begin) -= turn.end - turn.begin) == 0) {
      changed_.notify_all();
    }
    for (;;) {
      if (turn.prepares_ && ready_ < n_ && unfinished(ready_) == 0) {
        const size_t begin = ready_, end = std::min(begin + kStretch, n_), late = (stretches_ - 1) * kStretch;
        lock.unlock();
        try {
          prepare_(begin - std::min(begin, late), begin, end);
          lock.lock();
          unfinished(begin) = end - begin;
          ready_ = end;
          changed_.notify_all();
        } catch (...) {
          lock.lock();
          unready_ = std::current_exception();
          stop(begin);
        }
      } else if (const size_t end = std::min(ready_, n_); next_ < end) {
        turn.begin = next_;
        turn.end = next_ = std::min(next_ + kPiece, end);
        return true;
      } else if (next_ >= n_) {
        turn.begin = turn.end = next_;
        return false;
      } else {
        changed_.wait(lock);
      }
    }
  }

  const size_t threads_, stretches_;
  const Prepare& prepare_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t n_, ready_, next_ = 0;         // numbers of rows: all, ready, taken by threads
  std::array<size_t, 2> unfinished_{};  // ready rows of each stretch that are not done
  size_t error_row_ = 0;
  std::exception_ptr error_, unready_;  // of the body at the lowest row; of prepare, which concerns later rows
};

}  // namespace bertnli

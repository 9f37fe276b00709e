#include "encode.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "parallel.h"

namespace bertnli {
namespace {

// Appends rows of a job, one after the other.
class JobWriter {
 public:
  explicit JobWriter(const Job& job)
      : job_(job), options_{job.tokenizer, job.max_len, job.rule}, rows_(options_, job.second != nullptr, ids) {}
  JobWriter(const JobWriter&) = delete;
  JobWriter& operator=(const JobWriter&) = delete;
  // Before the rows [begin, end).
  void begin(size_t begin, size_t end) {
    end_ = end;
    for (size_t i = begin; i < std::min(begin + kAhead, end); ++i) prefetch(i);
    rows_.forget();
  }
  // Row i; returns the length of its segment 0.
  size_t write(size_t i) {
    if (i + kAhead < end_) prefetch(i + kAhead);
    if (job_.second == nullptr) return rows_.write(job_.first.row(i));
    try {
      return rows_.write(job_.first.row(i), job_.second->row(i));
    } catch (const CannotTruncate& e) {
      throw std::invalid_argument(e.what(std::string(job_.names[e.which()]) + "[" + std::to_string(i) + "]"));
    }
  }

  IdBuffer ids;

 private:
  // Strings are scattered in memory.
  static constexpr size_t kAhead = 8;
  void prefetch(size_t i) const {
    for (const Texts* texts : {&job_.first, job_.second}) {
      if (texts == nullptr || texts->views == nullptr) continue;
      const char* p = (*texts)[i].data();
      __builtin_prefetch(p);
      __builtin_prefetch(p + 64);
    }
  }

  const Job& job_;
  const RowOptions options_;
  RowWriter rows_;
  size_t end_ = 0;
};

// A number of ids that usual text of so many bytes does not exceed; at most what fits into so many rows.
size_t most_ids(size_t bytes, size_t rows, size_t max_len) {
  return std::min(bytes / 3 + 3 * rows, rows * std::min(max_len, size_t{1} << 20)) + 64;
}

// An estimate, 1/8 too large, of the ids of `all` rows (or bytes) from those of the first `some`; at most 2^28, since
// of huge inputs memory is reserved as they are read.
size_t extrapolate(size_t ids, size_t some, size_t all) {
  const double most = static_cast<double>(ids) / static_cast<double>(some) * static_cast<double>(all) * 1.125;
  return static_cast<size_t>(std::min(most, static_cast<double>(size_t{1} << 28)));
}

size_t text_bytes(const Texts& texts, size_t begin, size_t end) {
  size_t bytes = 0;
  for (size_t i = begin; i < end; ++i) bytes += texts[i].size();
  return bytes;
}

// Turns the lengths after the first element into offsets.
void sum_lengths(int64_t* offsets, size_t n) {
  for (size_t i = 0; i < n; ++i) offsets[i + 1] += offsets[i];
}

void append(IdBuffer& to, const IdBuffer& from) {
  int32_t* at = to.room(from.size());
  if (from.size() != 0) std::memcpy(at, from.data(), from.size() * sizeof(int32_t));
  to.advance(from.size());
}

// Joins the ids of pieces, which threads write in any order. The next piece in order is written straight to its place.
// Other pieces are written to spare memory, and appended when the pieces before them are done.
class InOrder {
 public:
  InOrder(int64_t* offsets, size_t rows) : offsets_(offsets), rows_(rows) { offsets_[0] = 0; }
  // Call before a piece that begins at this row. Sets `ids`, where its ids go; true if that is their final place.
  template <class Reserve>
  bool begin(size_t row, IdBuffer& ids, const Reserve& reserve) {
    const std::lock_guard lock(mutex_);
    if (row == joined_ && !busy_) {
      if (row == 0) all_.reserve(reserve());
      ids = std::move(all_);
      return busy_ = true;
    }
    if (!spare_.empty()) {
      ids = std::move(spare_.back());
      spare_.pop_back();
    }
    ids.resize_down(0);
    return false;
  }
  // Call after the piece; offsets_[begin + 1] to offsets_[end] hold the lengths of its rows.
  void end(size_t begin, size_t end, IdBuffer& ids, bool in_place) {
    std::unique_lock lock(mutex_);
    if (in_place) {
      all_ = std::move(ids);
      count(begin, end);
      if (begin == 0 && end < rows_) all_.reserve(extrapolate(all_.size(), end, rows_));
    } else {
      waiting_.emplace(begin, Waiting{end, std::move(ids)});
      if (busy_) return;
      busy_ = true;
    }
    for (auto next = waiting_.begin(); next != waiting_.end() && next->first == joined_; next = waiting_.begin()) {
      auto node = waiting_.extract(next);
      lock.unlock();
      append(all_, node.mapped().ids);
      lock.lock();
      count(node.key(), node.mapped().end);
      spare_.push_back(std::move(node.mapped().ids));
    }
    busy_ = false;
  }
  IdBuffer take() {
    all_.shrink();
    return std::move(all_);
  }

 private:
  struct Waiting {
    size_t end;
    IdBuffer ids;
  };
  void count(size_t begin, size_t end) {
    sum_lengths(offsets_ + begin, end - begin);
    joined_ = end;
  }

  int64_t* const offsets_;
  const size_t rows_;
  std::mutex mutex_;
  bool busy_ = false;  // a thread is writing to all_
  size_t joined_ = 0;  // number of rows whose ids are in all_
  IdBuffer all_;
  std::map<size_t, Waiting> waiting_;  // pieces by their first row
  std::vector<IdBuffer> spare_;
};

// The columns of all parts, appended to that of the first part.
template <class Part, class Column>
IdBuffer join(std::vector<Part>& parts, const Column& column) {
  IdBuffer all = std::move(column(parts[0]));
  size_t more = 0;
  for (size_t i = 1; i < parts.size(); ++i) more += column(parts[i]).size();
  (void)all.room(more);
  for (size_t i = 1; i < parts.size(); ++i) {
    const IdBuffer from = std::move(column(parts[i]));
    append(all, from);
  }
  all.shrink();
  return all;
}

// Encodes the rows of a part of a file.
struct EncodingSink final : PairSink {
  EncodingSink(const RowOptions& options, size_t bytes) : rows(options, true, ids), bytes_(bytes) {}
  void row(int64_t label, std::string_view premise, std::string_view hypothesis, const char* readable) override {
    const bool stays = readable != nullptr;
    const auto text = [&](std::string_view t) { return RowText{t, stays ? readable : t.data() + t.size()}; };
    const size_t before = ids.size();
    try {
      first_lens.push(static_cast<int32_t>(rows.write(text(premise), text(hypothesis))));
    } catch (const CannotTruncate& e) {
      throw RowError{e.what(e.which() == 0 ? "the premise" : "the hypothesis")};
    }
    lengths.push(static_cast<int32_t>(ids.size() - before));
    labels.push(static_cast<int32_t>(label));
    if (!stays) rows.forget();
  }
  void release(size_t bytes) override {
    rows.forget();
    if (std::exchange(reserved_, true) || bytes >= bytes_) return;
    for (IdBuffer* column : {&ids, &lengths, &first_lens, &labels})
      column->reserve(extrapolate(column->size(), bytes, bytes_));
  }
  IdBuffer ids, lengths, first_lens, labels;
  RowWriter rows;

 private:
  const size_t bytes_;     // of the part
  bool reserved_ = false;  // space for all rows, from the bytes that the first took
};

}  // namespace

IdBuffer encode_ragged(const Job& job, int64_t* offsets, int32_t* first_lens) {
  const size_t n = job.first.size;
  InOrder all(offsets, n);
  Pieces pieces(n, part_count(n, job.threads), job.take);
  pieces.run([&](Pieces::Turn& turn) {
    JobWriter writer(job);
    IdBuffer& ids = writer.ids;
    while (turn.next()) {
      const size_t begin = turn.begin, end = turn.end;
      const bool in_place = all.begin(begin, ids, [&] {
        size_t bytes = text_bytes(job.first, begin, end);
        if (job.second != nullptr) bytes += text_bytes(*job.second, begin, end);
        return most_ids(bytes, end, job.max_len);
      });
      writer.begin(begin, end);
      for (size_t i = begin; i < end; ++i) {
        const size_t before = ids.size();
        first_lens[i] = static_cast<int32_t>(writer.write(i));
        offsets[i + 1] = static_cast<int64_t>(ids.size() - before);
      }
      all.end(begin, end, ids, in_place);
    }
  });
  return all.take();
}

EncodedFile encode_file(const std::string& path, const ReadOptions& read, const RowOptions& rows) {
  std::vector<std::unique_ptr<EncodingSink>> parts;
  EncodedFile all;
  all.found = read_rows(path, read, [&](size_t n, size_t bytes) {
    std::vector<PairSink*> sinks;
    for (size_t i = 0; i < n; ++i) {
      parts.push_back(std::make_unique<EncodingSink>(rows, bytes));
      sinks.push_back(parts.back().get());
    }
    return sinks;
  });
  const auto column = [&](IdBuffer EncodingSink::* of) {
    return join(parts, [of](std::unique_ptr<EncodingSink>& part) -> IdBuffer& { return (*part).*of; });
  };
  all.ids = column(&EncodingSink::ids);
  all.lengths = column(&EncodingSink::lengths);
  all.first_lens = column(&EncodingSink::first_lens);
  all.labels = column(&EncodingSink::labels);
  return all;
}

Spans encode_spans(const Tokenizer& tokenizer, const Texts& texts, const Texts& lowered, int threads,
                   int64_t* offsets) {
  const size_t n = texts.size, parts = part_count(n, threads);
  std::vector<Spans> spans(parts);
  run_parts(parts, [&](size_t part) {
    for (size_t i = n * part / parts; i < n * (part + 1) / parts; ++i) {
      const size_t before = spans[part].ids.size();
      tokenizer.encode_spans(texts[i], lowered[i], spans[part]);
      offsets[i + 1] = static_cast<int64_t>(spans[part].ids.size() - before);
    }
  });
  offsets[0] = 0;
  sum_lengths(offsets, n);
  Spans all;
  for (IdBuffer Spans::* column : {&Spans::ids, &Spans::starts, &Spans::ends, &Spans::words}) {
    all.*column = join(spans, [column](Spans& s) -> IdBuffer& { return s.*column; });
  }
  return all;
}

}  // namespace bertnli

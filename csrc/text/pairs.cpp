#include "pairs.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "parallel.h"

namespace bertnli {
namespace {

constexpr size_t kRowsAThread = 512;             // fewer are done before a thread has started
constexpr size_t kMostCached = size_t{1} << 22;  // bytes of a dense result that are worth a place in the caches

size_t part_count(size_t rows, int threads) {
  return std::clamp<size_t>(rows / kRowsAThread, 1, static_cast<size_t>(std::max(threads, 1)));
}

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
    } catch (const CannotCut& e) {
      throw std::invalid_argument(e.what(std::string(job_.names[e.which()]) + "[" + std::to_string(i) + "]"));
    }
  }
  void forget() { rows_.forget(); }

  Ids ids;

 private:
  // Strings lie anywhere in memory.
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

// Copies past the caches: what is larger than they are would be gone from them before anyone read it, and the memory's
// old content is not fetched first. Other threads see the copy after finish_streams().
void stream(const int64_t* from, size_t n, int64_t* to) {
#if defined(__SSE2__)
  size_t k = 0;
  if (n != 0 && reinterpret_cast<uintptr_t>(to) % 16 != 0) to[0] = from[0], k = 1;
#pragma GCC unroll 4
  for (; k + 2 <= n; k += 2) {
    const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + k), two);
  }
  if (k < n) to[k] = from[k];
#else
  std::copy_n(from, n, to);
#endif
}

void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

#if defined(__SSE2__) && defined(__GNUC__)

bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  return has;
}

// One dense row, as write_dense_row has it, eight elements at a time, of which the width is a multiple: no loop ends
// where a row's tokens do, which the processor would guess wrong. With `past`, past the caches, to whole cache lines:
// the stores are few enough to wait for the memory while the next row is encoded.
template <bool past>
__attribute__((target("avx512f,avx512vl"))) void write_dense_eights(const int32_t* ids, size_t length, size_t first,
                                                                    size_t width, int64_t pad, int64_t* out_ids,
                                                                    int64_t* out_segments) {
  const __m512i pads = _mm512_set1_epi64(pad), eight = _mm512_set1_epi64(8);
  const __m512i lengths = _mm512_set1_epi64(static_cast<int64_t>(length));
  const __m512i firsts = _mm512_set1_epi64(static_cast<int64_t>(first));
  const auto store = [](int64_t* to, __m512i line) __attribute__((target("avx512f,avx512vl"))) {
    if constexpr (past) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
    } else {
      _mm512_storeu_si512(to, line);
    }
  };
  __m512i at = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  for (size_t k = 0; k < width; k += 8, at = _mm512_add_epi64(at, eight)) {
    const __mmask8 tokens = _mm512_cmplt_epi64_mask(at, lengths);
    const __mmask8 seconds = _mm512_mask_cmpge_epi64_mask(tokens, at, firsts);
    store(out_ids + k, _mm512_mask_cvtepi32_epi64(pads, tokens, _mm256_maskz_loadu_epi32(tokens, ids + k)));
    store(out_segments + k, _mm512_maskz_set1_epi64(seconds, 1));
  }
}

#else

bool has_avx512() { return false; }
template <bool>
void write_dense_eights(const int32_t*, size_t, size_t, size_t, int64_t, int64_t*, int64_t*) {}

#endif

// One dense row: ids widened, padding, segments.
void write_dense_row(const int32_t* ids, size_t length, size_t first, size_t width, int64_t pad, int64_t* out_ids,
                     int64_t* out_segments) {
  if (width % 8 == 0 && has_avx512()) {
    return write_dense_eights<false>(ids, length, first, width, pad, out_ids, out_segments);
  }
  for (size_t k = 0; k < length; ++k) out_ids[k] = ids[k];
  std::fill(out_ids + length, out_ids + width, pad);
  std::fill(out_segments, out_segments + first, 0);
  std::fill(out_segments + first, out_segments + length, 1);
  std::fill(out_segments + length, out_segments + width, 0);
}

// More ids than come of any usual text of so many rows, a piece at most, and bytes.
size_t guess(size_t bytes, size_t rows, size_t max_len) {
  return std::min(bytes / 3 + 3 * rows, rows * std::min(max_len, size_t{1} << 20)) + 64;
}

// As many ids as come of `all` rows (or bytes) where so many came of the first `some`, and a few more; for huge inputs
// a beginning.
size_t foresee(size_t ids, size_t some, size_t all) {
  const double most = static_cast<double>(ids) / static_cast<double>(some) * static_cast<double>(all) * 1.125;
  return static_cast<size_t>(std::min(most, static_cast<double>(size_t{1} << 28)));
}

size_t text_bytes(const Texts& texts, size_t begin, size_t end) {
  size_t bytes = 0;
  for (size_t i = begin; i < end; ++i) bytes += texts[i].size();
  return bytes;
}

// Lengths behind the first element become offsets.
void sum_lengths(int64_t* offsets, size_t n) {
  for (size_t i = 0; i < n; ++i) offsets[i + 1] += offsets[i];
}

void append(Ids& to, const Ids& from) {
  int32_t* at = to.room(from.size());
  if (from.size() != 0) std::memcpy(at, from.data(), from.size() * sizeof(int32_t));
  to.advance(from.size());
}

// The ids of all rows, from pieces that threads write in any order. The piece whose turn it is goes straight to its
// place; others wait in memory that is used again until whoever has the turn appends them.
class InOrder {
 public:
  InOrder(int64_t* offsets, size_t rows) : offsets_(offsets), rows_(rows) { offsets_[0] = 0; }
  // Before a piece that begins at this row: sets where its ids go. True if that is behind all ids before.
  template <class Reserve>
  bool begin(size_t row, Ids& ids, const Reserve& reserve) {
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
  // After it: offsets behind the first of its rows hold lengths.
  void end(size_t begin, size_t end, Ids& ids, bool in_place) {
    std::unique_lock lock(mutex_);
    if (in_place) {
      all_ = std::move(ids);
      count(begin, end);
      if (begin == 0 && end < rows_) all_.reserve(foresee(all_.size(), end, rows_));
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
  Ids take() {
    all_.shrink();
    return std::move(all_);
  }

 private:
  struct Waiting {
    size_t end;
    Ids ids;
  };
  void count(size_t begin, size_t end) {
    sum_lengths(offsets_ + begin, end - begin);
    joined_ = end;
  }

  int64_t* const offsets_;
  const size_t rows_;
  std::mutex mutex_;
  bool busy_ = false;  // a thread has the turn: all_ is its own
  size_t joined_ = 0;  // rows whose ids are in their place
  Ids all_;
  std::map<size_t, Waiting> waiting_;  // pieces by their first row
  std::vector<Ids> spare_;
};

// What the threads made, one behind the other in the first one's memory.
template <class Part, class Column>
Ids join(std::vector<Part>& parts, const Column& column) {
  Ids all = std::move(column(parts[0]));
  size_t more = 0;
  for (size_t i = 1; i < parts.size(); ++i) more += column(parts[i]).size();
  (void)all.room(more);
  for (size_t i = 1; i < parts.size(); ++i) {
    const Ids from = std::move(column(parts[i]));
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
    } catch (const CannotCut& e) {
      throw RowError{e.what(e.which() == 0 ? "the premise" : "the hypothesis")};
    }
    lengths.push(static_cast<int32_t>(ids.size() - before));
    labels.push(static_cast<int32_t>(label));
    if (!stays) rows.forget();
    if (stays && labels.size() == 1) begin_ = premise.data();
    if (stays && labels.size() == kFirstRows) reserve(static_cast<size_t>(premise.data() - begin_));
  }
  Ids ids, lengths, first_lens, labels;
  RowWriter rows;

 private:
  static constexpr size_t kFirstRows = 2048;
  // Space for all the part's rows, of which the first took so many bytes of the file.
  void reserve(size_t bytes) {
    for (Ids* column : {&ids, &lengths, &first_lens, &labels}) column->reserve(foresee(column->size(), bytes, bytes_));
  }

  const size_t bytes_;  // of the part
  const char* begin_ = nullptr;
};

}  // namespace

Ids encode_ragged(const Job& job, int64_t* offsets, int32_t* first_lens) {
  const size_t n = job.first.size;
  InOrder all(offsets, n);
  Pieces pieces(n, part_count(n, job.threads), job.take);
  pieces.run([&](Pieces::Turn& turn) {
    JobWriter writer(job);
    Ids& ids = writer.ids;
    while (turn.next()) {
      const size_t begin = turn.begin, end = turn.end;
      const bool in_place = all.begin(begin, ids, [&] {
        size_t bytes = text_bytes(job.first, begin, end);
        if (job.second != nullptr) bytes += text_bytes(*job.second, begin, end);
        return guess(bytes, end, job.max_len);
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

void encode_dense(const Job& job, int64_t* ids, int64_t* segments, int64_t* lens) {
  // A batch is wanted in the caches, by whoever asked for it.
  const size_t n = job.first.size, max_len = job.max_len;
  const bool streams = n * max_len > kMostCached / (2 * sizeof(int64_t));
  const auto places = reinterpret_cast<uintptr_t>(ids) | reinterpret_cast<uintptr_t>(segments);
  const bool lines = streams && has_avx512() && max_len % 8 == 0 && places % 64 == 0;
  const int64_t pad = job.tokenizer.special.pad;
  Pieces pieces(n, part_count(n, job.threads), job.take);
  pieces.run([&](Pieces::Turn& turn) {
    JobWriter writer(job);
    Ids& row = writer.ids;
    const size_t near = streams && !lines ? max_len : 0;
    std::vector<int64_t> near_ids(near, pad), near_segments(near);
    size_t last = 0;  // what lies behind the last row's tokens is padding already
    while (turn.next()) {
      writer.begin(turn.begin, turn.end);
      row.resize_down(0);
      size_t at = 0;  // rows follow each other for a while: the last one must stay in reach for a repeated first text
      for (size_t i = turn.begin; i < turn.end; ++i) {
        if (at > (size_t{1} << 12)) {
          row.resize_down(0);
          at = 0;
          writer.forget();
        }
        const size_t first = writer.write(i), length = row.size() - at;
        int64_t *const to_ids = ids + i * max_len, *const to_segments = segments + i * max_len;
        if (lines) {
          write_dense_eights<true>(row.data() + at, length, first, max_len, pad, to_ids, to_segments);
        } else if (streams) {
          write_dense_row(row.data() + at, length, first, std::max(length, std::exchange(last, length)), pad,
                          near_ids.data(), near_segments.data());
          stream(near_ids.data(), max_len, to_ids);
          stream(near_segments.data(), max_len, to_segments);
        } else {
          write_dense_row(row.data() + at, length, first, max_len, pad, to_ids, to_segments);
        }
        lens[i] = static_cast<int64_t>(length);
        at = row.size();
      }
    }
    if (streams) finish_streams();
  });
}

EncodedFile encode_file(const std::string& path, const ReadOptions& read, const RowOptions& rows) {
  std::vector<std::unique_ptr<EncodingSink>> parts;
  EncodedFile all;
  all.dropped = read_rows(path, read, [&](size_t n, size_t bytes) {
    std::vector<PairSink*> sinks;
    for (size_t i = 0; i < n; ++i) {
      parts.push_back(std::make_unique<EncodingSink>(rows, bytes));
      sinks.push_back(parts.back().get());
    }
    return sinks;
  });
  const auto column = [&](Ids EncodingSink::* of) {
    return join(parts, [of](std::unique_ptr<EncodingSink>& part) -> Ids& { return (*part).*of; });
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
  for (Ids Spans::* column : {&Spans::ids, &Spans::starts, &Spans::ends, &Spans::words}) {
    all.*column = join(spans, [column](Spans& s) -> Ids& { return s.*column; });
  }
  return all;
}

void gather_packed(const Ragged& from, const int64_t* rows, size_t count, int32_t* ids, int32_t* segments,
                   int32_t* positions, const int32_t* cu_seqlens) {
  for (size_t b = 0; b < count; ++b) {
    const int64_t i = rows != nullptr ? rows[b] : static_cast<int64_t>(b);
    const auto length = static_cast<size_t>(from.offsets[i + 1] - from.offsets[i]);
    const auto at = static_cast<size_t>(cu_seqlens[b]);
    const auto first = static_cast<size_t>(from.first_lens[i]);
    if (length != 0) std::memcpy(ids + at, from.ids + from.offsets[i], length * sizeof(int32_t));
    for (size_t k = 0; k < length; ++k) {
      segments[at + k] = k >= first;
      positions[at + k] = static_cast<int32_t>(k);
    }
  }
}

void gather_dense(const Ragged& from, const int64_t* rows, size_t count, size_t max_len, int64_t pad, int64_t* ids,
                  int64_t* segments, int64_t* lens) {
  for (size_t b = 0; b < count; ++b) {
    const int64_t i = rows != nullptr ? rows[b] : static_cast<int64_t>(b);
    const auto length = static_cast<size_t>(from.offsets[i + 1] - from.offsets[i]);
    write_dense_row(from.ids + from.offsets[i], length, static_cast<size_t>(from.first_lens[i]), max_len, pad,
                    ids + b * max_len, segments + b * max_len);
    lens[b] = static_cast<int64_t>(length);
  }
}

}  // namespace bertnli

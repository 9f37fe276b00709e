#include "pairs.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "parallel.h"

namespace bertnli {
namespace {

constexpr size_t kRowsAThread = 512;  // fewer are done before a thread has started

size_t part_count(size_t rows, int threads) {
  return std::clamp<size_t>(rows / kRowsAThread, 1, static_cast<size_t>(std::max(threads, 1)));
}

// Appends the rows of a job, one after the other.
class JobWriter {
 public:
  JobWriter(const Job& job, Ids& out)
      : job_(job), options_{job.tokenizer, job.max_len, job.rule}, rows_(options_, job.second != nullptr, out) {}
  // Row i; returns the length of its segment 0.
  size_t write(size_t i) {
    prefetch(job_.first, i + kAhead);
    if (job_.second == nullptr) return rows_.write(job_.first.row(i));
    prefetch(*job_.second, i + kAhead);
    try {
      return rows_.write(job_.first.row(i), job_.second->row(i));
    } catch (const CannotCut& e) {
      throw std::invalid_argument(e.what(std::string(job_.names[e.which()]) + "[" + std::to_string(i) + "]"));
    }
  }
  void forget() { rows_.forget(); }

 private:
  // Strings lie anywhere in memory.
  static constexpr size_t kAhead = 8;
  static void prefetch(const Texts& texts, size_t i) {
    if (texts.views == nullptr || i >= texts.size) return;
    const char* p = texts.views[i].data();
    __builtin_prefetch(p);
    __builtin_prefetch(p + 64);
  }

  const Job& job_;
  const RowOptions options_;
  RowWriter rows_;
};

// One dense row over zeros: ids widened, padding, segments.
void write_dense_row(const int32_t* ids, size_t length, size_t first, size_t max_len, int64_t pad, int64_t* out_ids,
                     int64_t* out_segments) {
  for (size_t k = 0; k < length; ++k) out_ids[k] = ids[k];
  if (pad != 0) std::fill(out_ids + length, out_ids + max_len, pad);
  std::fill(out_segments + first, out_segments + length, 1);
}

// About how many ids come of so many bytes and rows: more than of any usual text, and for huge inputs a beginning.
size_t guess(size_t bytes, size_t rows) { return std::min(bytes / 3 + 3 * rows + 64, size_t{1} << 28); }

size_t text_bytes(const Texts& texts, size_t begin, size_t end) {
  size_t bytes = 0;
  for (size_t i = begin; i < end; ++i) bytes += texts[i].size();
  return bytes;
}

// Lengths behind the first element become offsets.
void sum_lengths(int64_t* offsets, size_t n) {
  offsets[0] = 0;
  for (size_t i = 0; i < n; ++i) offsets[i + 1] += offsets[i];
}

// What the threads made, one behind the other in the first one's memory.
template <class Part, class Column>
Ids join(std::vector<Part>& parts, const Column& column) {
  Ids all = std::move(column(parts[0]));
  size_t more = 0;
  for (size_t i = 1; i < parts.size(); ++i) more += column(parts[i]).size();
  int32_t* to = all.room(more);
  for (size_t i = 1; i < parts.size(); ++i) {
    const Ids from = std::move(column(parts[i]));
    if (from.size() != 0) std::memcpy(to, from.data(), from.size() * sizeof(int32_t));
    to += from.size();
  }
  all.advance(more);
  all.shrink();
  return all;
}

// Encodes the rows of a part of a file.
struct EncodingSink final : PairSink {
  EncodingSink(const RowOptions& options, size_t bytes) : rows(options, true, ids) { ids.reserve(guess(bytes, 0)); }
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
  }
  Ids ids, lengths, first_lens, labels;
  RowWriter rows;
};

}  // namespace

Ids encode_ragged(const Job& job, int64_t* offsets, int32_t* first_lens) {
  const size_t n = job.first.size, parts = part_count(n, job.threads);
  std::vector<Ids> ids(parts);
  run_parts(parts, [&](size_t part) {
    const size_t begin = n * part / parts, end = n * (part + 1) / parts;
    size_t bytes = text_bytes(job.first, begin, end);
    if (job.second != nullptr) bytes += text_bytes(*job.second, begin, end);
    // The first one's memory takes the others' ids in the end; what is not used stays untouched.
    ids[part].reserve(guess(bytes, end - begin) * (part == 0 ? parts : 1));
    JobWriter writer(job, ids[part]);
    for (size_t i = begin; i < end; ++i) {
      const size_t before = ids[part].size();
      first_lens[i] = static_cast<int32_t>(writer.write(i));
      offsets[i + 1] = static_cast<int64_t>(ids[part].size() - before);
    }
  });
  sum_lengths(offsets, n);
  return join(ids, [](Ids& part) -> Ids& { return part; });
}

void encode_dense(const Job& job, int64_t* ids, int64_t* segments, int64_t* lens) {
  const size_t n = job.first.size, parts = part_count(n, job.threads);
  advise_huge(ids, n * job.max_len * sizeof(int64_t));
  advise_huge(segments, n * job.max_len * sizeof(int64_t));
  run_parts(parts, [&](size_t part) {
    const size_t begin = n * part / parts, end = n * (part + 1) / parts;
    Ids row;
    JobWriter writer(job, row);
    size_t at = 0;  // rows go to the start of `row` in turn, and the last one stays in reach for a repeated first text
    for (size_t i = begin; i < end; ++i) {
      if (at > (size_t{1} << 12)) {
        row.resize_down(0);
        at = 0;
        writer.forget();
      }
      const size_t first = writer.write(i), length = row.size() - at;
      write_dense_row(row.data() + at, length, first, job.max_len, job.tokenizer.special.pad, ids + i * job.max_len,
                      segments + i * job.max_len);
      lens[i] = static_cast<int64_t>(length);
      at = row.size();
    }
  });
}

EncodedFile encode_file(const std::string& path, const ReadOptions& read, const RowOptions& rows) {
  std::vector<std::unique_ptr<EncodingSink>> parts;
  EncodedFile all;
  all.dropped = read_rows(path, read, [&](size_t n, size_t bytes) {
    std::vector<PairSink*> sinks;
    for (size_t i = 0; i < n; ++i) {
      parts.push_back(std::make_unique<EncodingSink>(rows, i == 0 ? bytes * n : bytes));  // (the first takes all)
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
  advise_huge(ids, count * max_len * sizeof(int64_t));
  advise_huge(segments, count * max_len * sizeof(int64_t));
  for (size_t b = 0; b < count; ++b) {
    const int64_t i = rows != nullptr ? rows[b] : static_cast<int64_t>(b);
    const auto length = static_cast<size_t>(from.offsets[i + 1] - from.offsets[i]);
    write_dense_row(from.ids + from.offsets[i], length, static_cast<size_t>(from.first_lens[i]), max_len, pad,
                    ids + b * max_len, segments + b * max_len);
    lens[b] = static_cast<int64_t>(length);
  }
}

}  // namespace bertnli

#include "pairs.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "parallel.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bertnli {

bool truncate_pair(Truncation rule, size_t p, size_t h, size_t budget, Kept& kept) {
  kept = {p, h};
  if (p + h <= budget) return true;
  switch (rule) {
    case Truncation::kLongestFirst:
      // Popping one token at a time, the first text only while strictly longer, ends here:
      //   the second alone was longer   h' = M - p      (p <= M / 2)
      //   the first alone was longer    h' = h          (h <= M / 2)
      //   both                          h' = M / 2, the odd token stays with the first
      kept.second = std::min(h, std::max(budget - std::min(budget, p), budget / 2));
      kept.first = budget - kept.second;
      return true;
    case Truncation::kLongestFirstHf: {
      // As in `tokenizers`: where both are cut, the odd token stays with the longer text (the second if equal).
      const size_t small = std::min(p, h);
      size_t large = small > budget ? small : std::max(small, budget - small), s = small;
      if (s + large > budget) {
        s = budget / 2;
        large = s + budget % 2;
      }
      kept = p > h ? Kept{large, s} : Kept{s, large};
      return true;
    }
    case Truncation::kRatio:
      // budget * p / (p + h), rounded to nearest; a text that has tokens keeps one where there is room for both.
      kept.first = (2 * budget * p + p + h) / (2 * (p + h));
      if (budget >= 2) {
        if (p > 0) kept.first = std::max<size_t>(kept.first, 1);
        if (h > 0) kept.first = std::min(kept.first, budget - 1);
      }
      kept.second = budget - kept.first;
      return true;
    case Truncation::kOnlyFirst:
      if (h > budget) return false;
      kept.first = budget - h;
      return true;
    case Truncation::kOnlySecond:
      if (p > budget) return false;
      kept.second = budget - p;
      return true;
  }
  return false;
}

namespace {

constexpr size_t kRowsAThread = 512;  // fewer are done before a thread has started

size_t part_count(size_t rows, int threads) {
  return std::clamp<size_t>(rows / kRowsAThread, 1, static_cast<size_t>(std::max(threads, 1)));
}

// What a text must be encoded to, for the rule to know all it needs.
Limit limit_of(Truncation rule, size_t budget) {
  return {budget + 1, rule == Truncation::kLongestFirstHf || rule == Truncation::kRatio};
}

// Appends rows to `out`, one after the other.
class RowWriter {
 public:
  RowWriter(const Job& job, Ids& out)
      : job_(job), out_(out), loan_(job.tokenizer), budget_(job.max_len - (job.second != nullptr ? 3 : 2)) {
    limit_ = limit_of(job.rule, budget_);
  }

  // Appends row i; returns the length of its segment 0.
  size_t write(size_t i) {
    const SpecialIds& special = job_.tokenizer.special;
    out_.push(special.cls);
    const size_t first_at = out_.size();
    if (job_.second == nullptr) {
      job_.tokenizer.encode(job_.first[i], {budget_, false}, *loan_, out_);
      out_.push(special.sep);
      return out_.size() - first_at + 1;
    }
    const std::string_view text = job_.first[i];
    size_t p;
    if (repeats(text)) {  // premises come in runs: copy what the last row made of it
      p = last_count_;
      int32_t* to = out_.room(p);
      std::memcpy(to, out_.data() + last_at_, p * sizeof(int32_t));
      out_.advance(p);
    } else {
      p = job_.tokenizer.encode(text, limit_, *loan_, out_);
    }
    const size_t first_stored = out_.size() - first_at;
    out_.push(special.sep);
    const size_t second_at = out_.size();
    const size_t h = job_.tokenizer.encode((*job_.second)[i], limit_, *loan_, out_);
    size_t first_kept = first_stored;
    if (p + h > budget_) {
      Kept kept;
      if (!truncate_pair(job_.rule, p, h, budget_, kept)) {
        const bool first = job_.rule == Truncation::kOnlyFirst;
        throw std::invalid_argument(std::string(job_.names[first ? 1 : 0]) + "[" + std::to_string(i) +
                                    "] has more than the " + std::to_string(budget_) +
                                    " tokens that fit, and truncation='" + (first ? "only_first" : "only_second") +
                                    "' may not cut it; raise max_len or choose another truncation");
      }
      first_kept = kept.first;
      int32_t* row = out_.data() + first_at;
      row[kept.first] = special.sep;
      std::memmove(row + kept.first + 1, out_.data() + second_at, kept.second * sizeof(int32_t));
      out_.resize_down(first_at + kept.first + 1 + kept.second);
    }
    out_.push(special.sep);
    last_ = first_kept == p ? text : std::string_view();
    last_at_ = first_at;
    last_count_ = p;
    return first_kept + 2;
  }
  // The ids were moved away or overwritten: nothing to copy from.
  void forget() { last_ = {}; }

 private:
  bool repeats(std::string_view text) const {
    return !text.empty() && text.size() == last_.size() &&
           (text.data() == last_.data() || std::memcmp(text.data(), last_.data(), text.size()) == 0);
  }

  const Job& job_;
  Ids& out_;
  Tokenizer::CacheLoan loan_;
  const size_t budget_;
  Limit limit_;
  std::string_view last_;  // the last row's first text, where all of it was kept
  size_t last_at_ = 0, last_count_ = 0;
};

// Fewer page faults for large results, where the system has huge pages to give.
void advise_huge(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHuge - 1);
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

// One dense row: ids widened, segments, padding.
void write_dense_row(const int32_t* ids, size_t length, size_t first, size_t max_len, int64_t pad, int64_t* out_ids,
                     int64_t* out_segments) {
  for (size_t k = 0; k < length; ++k) out_ids[k] = ids[k];
  std::fill(out_ids + length, out_ids + max_len, pad);
  std::fill(out_segments, out_segments + first, 0);
  std::fill(out_segments + first, out_segments + length, 1);
  std::fill(out_segments + length, out_segments + max_len, 0);
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

}  // namespace

Ids encode_ragged(const Job& job, int64_t* offsets, int32_t* first_lens) {
  const size_t n = job.first.size, parts = part_count(n, job.threads);
  std::vector<Ids> ids(parts);
  run_parts(parts, [&](size_t part) {
    const size_t begin = n * part / parts, end = n * (part + 1) / parts;
    RowWriter writer(job, ids[part]);
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
    RowWriter writer(job, row);
    size_t at = 0;  // rows go to the start of `row` in turn, and the last one stays in reach for a repeated first text
    for (size_t i = begin; i < end; ++i) {
      if (at > (size_t{1} << 14)) {
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

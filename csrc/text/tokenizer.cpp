#include "tokenizer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "unicode.h"

namespace bertnli {

static_assert(std::endian::native == std::endian::little, "chunk keys are loaded and shifted as little-endian words");

// ---------------------------------------------------------------------------------------------------------------- Ids

void Ids::grow(size_t more) {
  const size_t capacity = std::max(size_ + more, capacity_ + capacity_ / 2 + 64);
  void* p = std::realloc(data_, capacity * sizeof(int32_t));
  if (p == nullptr) throw std::bad_alloc();
  data_ = static_cast<int32_t*>(p);
  capacity_ = capacity;
}

// --------------------------------------------------------------------------------------------------------- ChunkCache

void ChunkCache::insert(const Key& k, size_t h, const int32_t* ids, size_t n) {
  size_t i = h;
  while (i < h + kWindow && slots_[i].key.hi != 0) ++i;  // an empty slot: the length, in hi, is never 0 in a full one
  if (i == h + kWindow) i = h + (k.lo + k.hi) % kWindow;
  slots_[i].key = k;
  std::copy_n(ids, n, slots_[i].ids);
  slots_[i].count = static_cast<int32_t>(n);
}

// ---------------------------------------------------------------------------------------------------------- StringMap

static uint64_t hash_bytes(std::string_view s) {
  uint64_t h = 0x9E3779B97F4A7C15u ^ s.size();
  const auto mix = [&h](uint64_t w) {
    h = (h ^ w) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  };
  size_t i = 0;
  uint64_t w;
  for (; i + 8 <= s.size(); i += 8) {
    std::memcpy(&w, s.data() + i, 8);
    mix(w);
  }
  w = 0;
  if (i < s.size()) std::memcpy(&w, s.data() + i, s.size() - i);
  mix(w);
  return h;
}

StringMap::StringMap(const std::vector<std::pair<std::string, int32_t>>& items) {
  const size_t slots = std::bit_ceil(items.size() * 2 + 2);
  mask_ = slots - 1;
  entries_.assign(slots, Entry{0, 0, 0, -1});
  for (const auto& [key, id] : items) {
    const uint64_t h = hash_bytes(key);
    size_t i = h & mask_;
    while (entries_[i].id >= 0) i = (i + 1) & mask_;  // keys of a dict: no two are equal
    entries_[i] = {h, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(key.size()), id};
    bytes_ += key;
  }
}

int32_t StringMap::find(std::string_view s, int32_t missing) const {
  const uint64_t h = hash_bytes(s);
  for (size_t i = h & mask_; entries_[i].id >= 0; i = (i + 1) & mask_) {
    const Entry& e = entries_[i];
    if (e.hash == h && std::string_view(bytes_.data() + e.offset, e.size) == s) return e.id;
  }
  return missing;
}

// --------------------------------------------------------------------------------------------------------------- Trie

Trie::Trie(const std::vector<std::pair<std::string, int32_t>>& vocab) : nodes_(512) {
  auto items = vocab;
  std::sort(items.begin(), items.end());
  struct Todo {
    int32_t node;
    size_t first, last, depth;  // items [first, last) share `depth` bytes, which lead to `node`
  };
  std::vector<Todo> todo{{kRoot, 0, items.size(), 0}};
  std::vector<std::pair<unsigned char, size_t>> children;  // byte, its first item
  size_t free = 257;                                       // every slot before it is taken (bases stay above 0)
  const auto taken = [this](size_t i) { return i < nodes_.size() && nodes_[i].check != kNone; };
  while (!todo.empty()) {
    Todo t = todo.back();
    todo.pop_back();
    while (t.first < t.last && items[t.first].first.size() == t.depth) {
      nodes_[static_cast<size_t>(t.node)].id = items[t.first++].second;
    }
    children.clear();
    for (size_t i = t.first; i < t.last; ++i) {
      const auto b = static_cast<unsigned char>(items[i].first[t.depth]);
      if (children.empty() || children.back().first != b) children.emplace_back(b, i);
    }
    if (children.empty()) continue;
    while (taken(free)) ++free;
    size_t base = free - children[0].first;
    const auto clash = [&](const auto& c) { return taken(base + c.first); };
    while (std::any_of(children.begin(), children.end(), clash)) ++base;
    if (nodes_.size() < base + 256) nodes_.resize(std::max(base + 256, nodes_.size() * 3 / 2));
    nodes_[static_cast<size_t>(t.node)].base = static_cast<int32_t>(base);
    for (size_t k = 0; k < children.size(); ++k) {
      const size_t c = base + children[k].first;
      nodes_[c].check = t.node;
      const size_t last = k + 1 < children.size() ? children[k + 1].second : t.last;
      todo.push_back({static_cast<int32_t>(c), children[k].second, last, t.depth + 1});
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- Tokenizer

Tokenizer::~Tokenizer() {
  for (auto& slot : idle_) delete slot.load();
}

Tokenizer::CacheLoan::CacheLoan(const Tokenizer& owner) : owner_(owner) {
  for (auto& slot : owner_.idle_) {
    cache_.reset(slot.exchange(nullptr, std::memory_order_acquire));
    if (cache_) return;
  }
  cache_ = std::make_unique<ChunkCache>();
}

Tokenizer::CacheLoan::~CacheLoan() {
  for (auto& slot : owner_.idle_) {
    ChunkCache* empty = nullptr;
    if (slot.compare_exchange_strong(empty, cache_.get(), std::memory_order_release)) {
      (void)cache_.release();
      return;
    }
  }
}

namespace {

// The low n bytes of a 16-byte word, n up to 15.
struct KeyMasks {
  uint64_t lo[16], hi[16];
  constexpr KeyMasks() : lo(), hi() {
    for (int n = 0; n < 16; ++n) {
      lo[n] = n >= 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * n)) - 1;
      hi[n] = n <= 8 ? 0 : (uint64_t{1} << (8 * (n - 8))) - 1;
    }
  }
};
constexpr KeyMasks kKeyMasks;

// How many of the 16 bytes come before the first space.
inline int before_space(uint64_t lo, uint64_t hi) {
#if defined(__SSE2__)
  const __m128i v = _mm_set_epi64x(static_cast<int64_t>(hi), static_cast<int64_t>(lo));
  const unsigned mask = static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_set1_epi8(' '))));
  return std::countr_zero(mask | 0x10000u);
#else
  const auto zeros = [](uint64_t x) {  // 0x80 in each byte of x that is a space
    x ^= 0x2020202020202020u;
    return ~(((x & 0x7F7F7F7F7F7F7F7Fu) + 0x7F7F7F7F7F7F7F7Fu) | x | 0x7F7F7F7F7F7F7F7Fu);
  };
  const uint64_t a = zeros(lo);
  return a != 0 ? std::countr_zero(a) / 8 : 8 + std::countr_zero(zeros(hi)) / 8;  // countr_zero(0) is 64
#endif
}

}  // namespace

size_t Tokenizer::encode(std::string_view text, Limit limit, ChunkCache& cache, Ids& out) const {
  const size_t start = out.size();
  size_t count = 0;
  const char *p = text.data(), *end = p + text.size();
  char copy[32];  // a short text moves to where 16 bytes can be read from each of its places
  const bool is_short = text.size() < 16;
  if (is_short) {
    std::memset(copy, 0, sizeof copy);
    if (!text.empty()) std::memcpy(copy, p, text.size());
    p = copy;
    end = copy + text.size();
  }
  while (p < end) {
    const ptrdiff_t left = end - p;
    uint64_t lo, hi;
    if (left >= 16 || is_short) {
      std::memcpy(&lo, p, 8);
      std::memcpy(&hi, p + 8, 8);
    } else {  // the text's last 16 bytes, moved down so that they begin at p
      std::memcpy(&lo, end - 16, 8);
      std::memcpy(&hi, end - 8, 8);
      const int drop = 8 * static_cast<int>(16 - left);  // 8 to 120 bits
      if (drop >= 64) {
        lo = hi >> (drop - 64);
        hi = 0;
      } else {
        lo = lo >> drop | hi << (64 - drop);
        hi >>= drop;
      }
    }
    const ptrdiff_t n = std::min<ptrdiff_t>(before_space(lo, hi), left);
    if (n == 0) {
      ++p;
      continue;
    }
    if (n <= static_cast<ptrdiff_t>(ChunkCache::kMaxKey)) {
      const ChunkCache::Key key{lo & kKeyMasks.lo[n], (hi & kKeyMasks.hi[n]) | static_cast<uint64_t>(n) << 56};
      const size_t h = ChunkCache::hash(key);
      if (const ChunkCache::Slot* hit = cache.find(key, h)) {
        std::memcpy(out.room(ChunkCache::kMaxIds), hit->ids, sizeof hit->ids);
        out.advance(static_cast<size_t>(hit->count));
        count += static_cast<size_t>(hit->count);
      } else {
        const size_t before = out.size();
        const size_t got = encode_chunk({p, static_cast<size_t>(n)}, {}, out);  // at most 15 bytes: no limit is needed
        if (got <= ChunkCache::kMaxIds) cache.insert(key, h, out.data() + before, got);
        count += got;
      }
      p += n + 1;  // past the space
    } else {
      const void* space = std::memchr(p + 16, ' ', static_cast<size_t>(left - 16));
      const char* stop = space != nullptr ? static_cast<const char*>(space) : end;
      const size_t stored = out.size() - start;
      count += encode_chunk({p, static_cast<size_t>(stop - p)}, {limit.store - stored, limit.count_all}, out);
      p = stop + 1;
    }
    if (count >= limit.store) {
      out.resize_down(std::min(out.size(), start + limit.store));
      if (!limit.count_all) return count;
    }
  }
  return count;
}

// ------------------------------------------------------------------------------------------------------ WordTokenizer

WordTokenizer::WordTokenizer(const std::vector<std::pair<std::string, int32_t>>& vocab, SpecialIds ids)
    : Tokenizer(ids), map_(vocab) {}

size_t WordTokenizer::encode_chunk(std::string_view chunk, Limit limit, Ids& out) const {
  const char *p = chunk.data(), *end = p + chunk.size();
  size_t count = 0;
  std::string lowered;  // words of up to 15 bytes fit in it without an allocation
  while (p < end) {
    lowered.clear();
    bool upper = false;
    const char* word = p;
    int space = 0;
    while (p < end) {
      const auto b = static_cast<unsigned char>(*p);
      if (b < 0x80) {
        if (is_python_space(b)) {
          space = 1;
          break;
        }
        upper |= b >= 'A' && b <= 'Z';
        ++p;
      } else {
        const CodePoint c = decode_utf8(p, end);
        if (is_python_space(c.value)) {
          space = c.size;
          break;
        }
        p += c.size;
      }
    }
    std::string_view token(word, static_cast<size_t>(p - word));
    p += space;
    if (token.empty()) continue;
    if (upper) {
      lowered.assign(token);
      for (char& c : lowered) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
      token = lowered;
    }
    const int32_t id = map_.find(token, special.unk);
    if (++count <= limit.store) out.push(id);
    if (count >= limit.store && !limit.count_all) break;
  }
  return count;
}

void WordTokenizer::encode_spans(std::string_view text, std::string_view lowered, Spans& out) const {
  const size_t before = out.ids.size();
  encode_chunk(lowered, {}, out.ids);
  const char *p = text.data(), *end = p + text.size();
  int32_t at = 0, words = 0;
  bool inside = false;
  for (; p < end; ++at) {
    const CodePoint c = decode_utf8(p, end);
    p += c.size;
    const bool space = is_python_space(c.value);
    if (!inside && !space) out.starts.push(at), out.words.push(words++);
    if (inside && space) out.ends.push(at);
    inside = !space;
  }
  if (inside) out.ends.push(at);
  if (out.ids.size() - before != static_cast<size_t>(words)) throw std::logic_error("lower() has moved white space");
}

// ------------------------------------------------------------------------------------------------- WordPieceTokenizer

namespace {
constexpr uint8_t kAsciiDeleted = 0, kAsciiSpace = 1, kAsciiPunctuation = 2;
constexpr size_t kMaxWordChars = 100;
}  // namespace

WordPieceTokenizer::WordPieceTokenizer(const std::vector<std::pair<std::string, int32_t>>& vocab, SpecialIds ids,
                                       std::vector<std::pair<std::string, int32_t>> literals, bool lowercase)
    : Tokenizer(ids), trie_(vocab), literals_(std::move(literals)), lowercase_(lowercase) {
  // No word begins with "##" ('#' is a word by itself), so the continuations can live in the same trie.
  continuation_ = trie_.child(Trie::kRoot, '#');
  if (continuation_ != Trie::kNone) continuation_ = trie_.child(continuation_, '#');
  for (char32_t c = 0; c < 128; ++c) {
    const CharInfo& info = char_info(c);
    const Kind kind = lowercase ? info.lower : info.cased;
    ascii_[c] = c == ' ' || kind == Kind::kSpace    ? kAsciiSpace
                : kind == Kind::kDelete             ? kAsciiDeleted
                : info.punctuation                  ? kAsciiPunctuation
                : lowercase && c >= 'A' && c <= 'Z' ? static_cast<uint8_t>(c + 32)
                                                    : static_cast<uint8_t>(c);
  }
}

template <class OnPiece>
bool WordPieceTokenizer::encode_word(std::string_view word, Ids& out, const OnPiece& on_piece) const {
  const size_t before = out.size();
  for (size_t pos = 0; pos < word.size();) {
    int32_t node = pos == 0 ? Trie::kRoot : continuation_, best = -1;
    size_t best_end = pos;
    for (size_t i = pos; i < word.size() && node != Trie::kNone; ++i) {
      node = trie_.child(node, static_cast<unsigned char>(word[i]));
      if (node != Trie::kNone && trie_.id(node) >= 0) {
        best = trie_.id(node);
        best_end = i + 1;
      }
    }
    if (best < 0) {  // one piece is missing: the whole word is unknown
      out.resize_down(before);
      out.push(special.unk);
      return false;
    }
    out.push(best);
    pos = best_end;
    on_piece(pos);
  }
  return true;
}

namespace {

// Where the characters of a word come from: not asked for, or written to a Spans as each word ends.
class NoTrace {
 public:
  static constexpr bool kActive = false;
};

class SpanTrace {
 public:
  static constexpr bool kActive = true;
  explicit SpanTrace(Spans& out) : out_(out) {}

  int32_t source = 0;  // the character of the text that is being normalised

  void character(size_t k) { sources_[std::min(k, kMaxWordChars)] = source; }  // (beyond: the last one)
  void piece(size_t end) { ends_[pieces_++] = static_cast<uint16_t>(end); }
  // The word's tokens: its pieces, or one for the whole.
  void end_word(std::string_view word, size_t chars, bool known) {
    size_t first = 0, byte = 0, k = 0;
    if (known) {
      for (size_t i = 0; i < pieces_; ++i) {
        for (; byte < ends_[i]; ++byte) k += (static_cast<unsigned char>(word[byte]) & 0xC0) != 0x80;
        token(sources_[first], sources_[k - 1] + 1);
        first = k;
      }
    } else {
      token(sources_[0], sources_[std::min(chars - 1, kMaxWordChars)] + 1);
    }
    pieces_ = 0;
    ++word_;
  }
  void special(size_t size) {
    token(source, source + static_cast<int32_t>(size));
    ++word_;
  }

 private:
  void token(int32_t start, int32_t end) {
    out_.starts.push(start);
    out_.ends.push(end);
    out_.words.push(word_);
  }

  Spans& out_;
  int32_t word_ = 0;
  size_t pieces_ = 0;
  int32_t sources_[kMaxWordChars + 1];
  uint16_t ends_[kMaxWordChars];
};

}  // namespace

// Collects the characters of a chunk after normalisation, and encodes each word as it ends.
template <class Trace>
class WordPieceTokenizer::Writer {
 public:
  Writer(const WordPieceTokenizer& tokenizer, Limit limit, Ids& out, Trace trace)
      : trace(trace), tokenizer_(tokenizer), limit_(limit), out_(out), start_(out.size()) {}

  Trace trace;

  // One more character of a word; beyond 100 the word is unknown whatever follows, so nothing is kept of it.
  void add(char32_t c) {
    if constexpr (Trace::kActive) trace.character(chars_);
    if (++chars_ <= kMaxWordChars) size_ += static_cast<size_t>(encode_utf8(c, word_ + size_));
  }
  void add_ascii(char c) {
    if constexpr (Trace::kActive) trace.character(chars_);
    if (++chars_ <= kMaxWordChars) word_[size_++] = c;
  }
  // A character after normalisation, which may be punctuation.
  void put(char32_t c, const CharInfo& info) {
    if (info.punctuation) {
      single(c);
    } else {
      add(c);
    }
  }
  // A character that is a word by itself.
  void single(char32_t c) {
    end_word();
    add(c);
    end_word();
  }
  // A mark that was not stripped waits until the next starter: canonical order is by class, stable. `first`: the first
  // or only one that a character of the text became.
  void put_mark(char32_t c, int rank, bool first) {
    if constexpr (Trace::kActive) trace_mark(first);
    marks_.push_back({c, rank, first});
  }
  // A stripped mark matters to where its neighbours come from, and to nothing else.
  void strip_mark(int rank) {
    if constexpr (Trace::kActive) {
      trace_mark(true);
      marks_.push_back({0, rank, true});
    }
  }
  void starter() {
    if (!marks_.empty()) flush_marks();
  }
  void end_word() {
    starter();
    if (chars_ == 0) return;
    bool known = false;
    if (chars_ > kMaxWordChars) {
      out_.push(tokenizer_.special.unk);
    } else {
      known = tokenizer_.encode_word({word_, size_}, out_, [this]([[maybe_unused]] size_t end) {
        if constexpr (Trace::kActive) trace.piece(end);
      });
    }
    if constexpr (Trace::kActive) trace.end_word({word_, size_}, chars_, known);
    chars_ = size_ = 0;
    clip();
  }
  void special(int32_t id, [[maybe_unused]] size_t size) {
    end_word();
    out_.push(id);
    if constexpr (Trace::kActive) trace.special(size);
    clip();
  }
  bool full() const { return count_ >= limit_.store && !limit_.count_all; }
  size_t count() const { return count_; }

 private:
  void clip() {
    const size_t stored = out_.size() - start_;
    count_ += stored - stored_;
    stored_ = std::min(stored, limit_.store);
    out_.resize_down(start_ + stored_);
  }
  // `tokenizers` counts places, not characters: the k-th mark of the sorted run comes from the run's k-th character.
  void flush_marks() {
    std::stable_sort(marks_.begin(), marks_.end(), [](const Mark& a, const Mark& b) { return a.rank < b.rank; });
    if constexpr (Trace::kActive) {
      const int32_t now = std::exchange(trace.source, before_marks_);
      size_t k = 0;
      for (const Mark& m : marks_) {
        if (m.first) trace.source = mark_sources_[k++];
        if (m.c != 0) add(m.c);
      }
      trace.source = now;
      mark_sources_.clear();
    } else {
      for (const Mark& m : marks_) add(m.c);
    }
    marks_.clear();
  }
  void trace_mark(bool first) {
    if (marks_.empty()) before_marks_ = trace.source;
    if (first) mark_sources_.push_back(trace.source);
  }

  struct Mark {
    char32_t c;
    int rank;
    bool first;
  };

  const WordPieceTokenizer& tokenizer_;
  const Limit limit_;
  Ids& out_;
  const size_t start_;
  size_t stored_ = 0, count_ = 0, chars_ = 0, size_ = 0;
  std::vector<Mark> marks_;
  std::vector<int32_t> mark_sources_;
  int32_t before_marks_ = 0;
  char word_[4 * kMaxWordChars];
};

size_t WordPieceTokenizer::encode_chunk(std::string_view chunk, Limit limit, Ids& out) const {
  return encode_traced(chunk, limit, out, NoTrace());
}

void WordPieceTokenizer::encode_spans(std::string_view text, std::string_view, Spans& out) const {
  encode_traced(text, {}, out.ids, SpanTrace(out));
}

template <class Trace>
size_t WordPieceTokenizer::encode_traced(std::string_view text, Limit limit, Ids& out, Trace trace) const {
  Writer<Trace> w(*this, limit, out, trace);
  const char *p = text.data(), *end = p + text.size();
  [[maybe_unused]] int32_t at = 0;
  while (p < end && !w.full()) {
    if constexpr (Trace::kActive) w.trace.source = at++;
    const auto b = static_cast<unsigned char>(*p);
    if (b < 0x80) {
      const uint8_t a = ascii_[b];
      if (a > kAsciiPunctuation) {
        w.starter();
        w.add_ascii(static_cast<char>(a));
      } else if (a == kAsciiPunctuation) {
        if (b == '[') {  // special tokens are found in the raw text
          const std::string_view rest(p, static_cast<size_t>(end - p));
          const auto found = std::find_if(literals_.begin(), literals_.end(),
                                          [&](const auto& item) { return rest.starts_with(item.first); });
          if (found != literals_.end()) {
            w.special(found->second, found->first.size());
            p += found->first.size();
            at += static_cast<int32_t>(found->first.size()) - 1;
            continue;
          }
        }
        w.single(b);
      } else if (a == kAsciiSpace) {
        w.end_word();
      }
      ++p;
      continue;
    }
    const CodePoint c = decode_utf8(p, end);
    p += c.size;
    const CharInfo& info = char_info(c.value);
    const auto put_mapped = [&] {
      for (const char32_t m : mapped(info)) {
        const CharInfo& i = char_info(m);
        if (i.rank != 0) {
          w.put_mark(m, i.rank, false);
        } else {
          w.starter();
          w.put(m, i);
        }
      }
    };
    switch (lowercase_ ? info.lower : info.cased) {
      case Kind::kKeep:
        if (lowercase_ && info.rank != 0) {
          w.put_mark(c.value, info.rank, true);
        } else {
          w.starter();
          w.put(c.value, info);
        }
        break;
      case Kind::kDelete:
        if (lowercase_ && info.rank != 0) w.strip_mark(info.rank);
        break;
      case Kind::kSpace:
        w.end_word();
        break;
      case Kind::kCjk:
        w.end_word();
        if (lowercase_ && info.mapped != 0) {
          put_mapped();
        } else {
          w.add(c.value);
        }
        w.end_word();
        break;
      case Kind::kMapped:
        w.starter();
        put_mapped();
        break;
      case Kind::kHangul: {
        const char32_t s = c.value - 0xAC00;
        w.starter();
        w.add(0x1100 + s / 588);
        w.add(0x1161 + s % 588 / 28);
        if (s % 28 != 0) w.add(0x11A7 + s % 28);
        break;
      }
      case Kind::kBarrier:
        w.starter();
        break;
    }
  }
  w.end_word();
  return w.count();
}

}  // namespace bertnli

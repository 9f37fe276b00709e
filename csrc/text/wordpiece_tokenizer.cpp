#include "wordpiece_tokenizer.h"

#include <algorithm>

namespace bertnli {
namespace {

constexpr size_t kMaxWordChars = 100;

// The places of a word's characters: ignored, or written to a Spans as each word ends.
struct NoTrace {
  static constexpr bool kTraced = false;
};

class SpanTrace {
 public:
  static constexpr bool kTraced = true;
  explicit SpanTrace(Spans& out) : out_(out) {}

  void character(size_t k, int32_t source) { sources_[std::min(k, kMaxWordChars)] = source; }  // (beyond: the last one)
  void piece(size_t end) { ends_[pieces_++] = static_cast<uint16_t>(end); }
  // The word's tokens: its pieces, or one for the whole where they do not reach its end.
  void end_word(std::string_view word, size_t chars) {
    size_t first = 0, byte = 0, k = 0;
    if (pieces_ != 0 && ends_[pieces_ - 1] == word.size()) {
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
  void special(int32_t source, size_t size) {
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

WordPieceTokenizer::WordPieceTokenizer(const VocabItems& vocab, SpecialIds ids, Literals literals, bool lowercase)
    : Tokenizer(ids),
      trie_(vocab),
      // No word begins with "##" ('#' is a word by itself), so the continuations can live in the same trie.
      continuation_(trie_.find("##")),
      starts_(trie_, Trie::kRoot),
      continuations_(trie_, continuation_),
      literals_(std::move(literals)),
      lowercase_(lowercase),
      ascii_(lowercase) {}

template <class OnPiece>
int32_t* WordPieceTokenizer::encode_word(std::string_view word, int32_t* out, const OnPiece& on_piece) const {
  int32_t* to = out;
  for (size_t pos = 0; pos < word.size();) {
    Trie::Place at;
    int32_t best = -1;
    size_t best_end = pos, i = pos;
    const auto a = static_cast<unsigned char>(word[pos]), b = static_cast<unsigned char>(word.data()[pos + 1]);
    if ((a | b) < 0x80) {  // most pieces end here, without a memory access to the trie's nodes
      const Trie::Start& start = (pos == 0 ? starts_ : continuations_).of(a, b);
      if (start.size() != 0) best = start.id();
      best_end += start.size();
      i += 2;
      at = start.place;
    } else {
      at = trie_.place(pos == 0 ? Trie::kRoot : continuation_);
    }
    for (; i < word.size() && at.may_go_on(static_cast<unsigned char>(word[i])); ++i) {
      const int32_t node = trie_.child(at, static_cast<unsigned char>(word[i]));
      if (node == Trie::kNone) break;
      if (trie_.id(node) >= 0) {
        best = trie_.id(node);
        best_end = i + 1;
      }
      at = trie_.place(node);
    }
    if (best < 0) {  // one piece is missing: the whole word is unknown
      *out = special.unk;
      return out + 1;
    }
    *to++ = best;
    pos = best_end;
    on_piece(pos);
  }
  return to;
}

// Collects the characters of a word, and encodes it as it ends.
template <class Trace>
class WordPieceTokenizer::PieceWriter {
 public:
  static constexpr bool kTraced = Trace::kTraced;
  int32_t source = 0;

  PieceWriter(const WordPieceTokenizer& tokenizer, Limit limit, IdBuffer& out, Trace trace)
      : tokenizer_(tokenizer), limit_(limit), out_(out), start_(out.size()), trace_(trace) {}

  // A word of more than 100 characters is unknown, so the rest is not stored.
  void add(char32_t c) {
    if constexpr (kTraced) trace_.character(chars_, source);
    if (++chars_ > kMaxWordChars) return;
    if (c < 0x80) {
      word_[size_++] = static_cast<char>(c);
    } else {
      size_ += static_cast<size_t>(encode_utf8(c, word_ + size_));
    }
  }
  void end_word() {
    if (chars_ == 0) return;
    if (chars_ > kMaxWordChars) {
      out_.push(tokenizer_.special.unk);
    } else {
      word_[size_] = '\0';
      out_.end_at(tokenizer_.encode_word({word_, size_}, out_.room(size_), [&]([[maybe_unused]] size_t end) {
        if constexpr (kTraced) trace_.piece(end);
      }));
    }
    if constexpr (kTraced) trace_.end_word({word_, size_}, chars_);
    chars_ = size_ = 0;
    clip();
  }
  void special(int32_t id, [[maybe_unused]] size_t size) {
    out_.push(id);
    if constexpr (kTraced) trace_.special(source, size);
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

  const WordPieceTokenizer& tokenizer_;
  const Limit limit_;
  IdBuffer& out_;
  const size_t start_;
  [[no_unique_address]] Trace trace_;
  size_t stored_ = 0, count_ = 0, chars_ = 0, size_ = 0;
  char word_[4 * kMaxWordChars + 1];
};

int32_t* WordPieceTokenizer::encode_ascii_chunk(std::string_view chunk, int32_t* to) const {
  char word[kMaxWordChars + 1];
  size_t size = 0;
  const auto end_word = [&] {
    if (size == 0) return;
    word[size] = '\0';
    to = encode_word({word, size}, to, [](size_t) {});
    size = 0;
  };
  for (size_t i = 0; i < chunk.size(); ++i) {
    const auto b = static_cast<unsigned char>(chunk[i]);
    if (b >= 0x80) return nullptr;
    const uint8_t a = ascii_[b];
    if (a > AsciiTable::kPunctuation) {
      word[size++] = static_cast<char>(a);
    } else if (a != AsciiTable::kDeleted) {
      end_word();
      if (a == AsciiTable::kSpace) continue;
      const auto* literal = b == '[' ? literal_at(literals_, chunk.substr(i)) : nullptr;
      if (literal != nullptr) {
        *to++ = literal->second;
        i += literal->first.size() - 1;
      } else {
        word[size++] = static_cast<char>(b);
        end_word();
      }
    }
  }
  end_word();
  return to;
}

size_t WordPieceTokenizer::encode_chunk(std::string_view chunk, Limit limit, IdBuffer& out) const {
  if (chunk.size() <= std::min(kMaxWordChars, limit.store)) {  // (a token has at least one byte, so the limit holds)
    const size_t before = out.size();
    if (const int32_t* end = encode_ascii_chunk(chunk, out.room(chunk.size()))) {
      out.end_at(end);
      return out.size() - before;
    }
  }
  return encode_any_chunk(chunk, limit, out);
}

size_t WordPieceTokenizer::encode_any_chunk(std::string_view chunk, Limit limit, IdBuffer& out) const {
  PieceWriter<NoTrace> words(*this, limit, out, {});
  Normalizer(ascii_, literals_, lowercase_, words).run(chunk);
  return words.count();
}

int32_t* WordPieceTokenizer::encode_short_chunk(std::string_view chunk, ChunkKey key, int32_t* to) const {
  if (lowercase_ && key.is_alphanumeric()) {
    char word[16];
    key.write_lower(word);
    return encode_word({word, chunk.size()}, to, [](size_t) {});
  }
  if (int32_t* end = encode_ascii_chunk(chunk, to)) return end;
  IdBuffer few;
  encode_any_chunk(chunk, {}, few);
  return std::copy_n(few.data(), few.size(), to);
}

void WordPieceTokenizer::encode_spans(std::string_view text, std::string_view, Spans& out) const {
  PieceWriter<SpanTrace> words(*this, {}, out.ids, SpanTrace(out));
  Normalizer(ascii_, literals_, lowercase_, words).run(text);
}

}  // namespace bertnli

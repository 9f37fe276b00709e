// BERT's WordPiece, id for id what `tokenizers` gives.
#pragma once

#include "ascii.h"
#include "normalizer.h"
#include "tokenizer.h"
#include "trie.h"

namespace bertnli {

class WordPieceTokenizer : public Tokenizer {
 public:
  WordPieceTokenizer(const VocabItems& vocab, SpecialIds ids, Literals literals, bool lowercase);
  void encode_spans(std::string_view text, std::string_view lowered, Spans& out) const override;
  bool wants_lowered() const override { return false; }

 protected:
  size_t encode_chunk(std::string_view chunk, Limit limit, IdBuffer& out) const override;
  int32_t* encode_short_chunk(std::string_view chunk, ChunkKey key, int32_t* to) const override;

 private:
  template <class Trace>
  class PieceWriter;
  // Writes the pieces of a word, which is followed by a zero byte, and calls on_piece(end of the piece in bytes) for
  // each. If a piece is missing, writes [UNK] alone. Returns the end; there must be room for one id a byte.
  template <class OnPiece>
  int32_t* encode_word(std::string_view word, int32_t* out, const OnPiece& on_piece) const;
  // Writes the ids of a chunk of at most 100 ASCII characters; there must be room for one id a byte. Returns the end,
  // or null if a character is not ASCII.
  int32_t* encode_ascii_chunk(std::string_view chunk, int32_t* to) const;
  size_t encode_any_chunk(std::string_view chunk, Limit limit, IdBuffer& out) const;  // as encode_chunk() has it

  Trie trie_;
  int32_t continuation_;                 // the trie's node after "##", or kNone
  Trie::Starts starts_, continuations_;  // of the first piece of a word, and of the others
  Literals literals_;
  bool lowercase_;
  AsciiTable ascii_;
};

}  // namespace bertnli

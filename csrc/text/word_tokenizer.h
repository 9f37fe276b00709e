// D2L's words: text.lower().split(), looked up.
#pragma once

#include "tokenizer.h"
#include "trie.h"

namespace bertnli {

// ASCII is lowered here; other text must come lowered by Python.
class WordTokenizer final : public Tokenizer {
 public:
  WordTokenizer(const VocabItems& vocab, SpecialIds ids);
  void encode_spans(std::string_view text, std::string_view lowered, Spans& out) const override;
  bool wants_lowered() const override { return true; }

 protected:
  size_t encode_chunk(std::string_view chunk, Limit limit, IdBuffer& out) const override;
  int32_t* encode_short_chunk(std::string_view chunk, ChunkKey key, int32_t* to) const override;

 private:
  template <class Push>
  size_t encode_words(std::string_view chunk, Limit limit, const Push& push) const;

  StringMap map_;
};

}  // namespace bertnli

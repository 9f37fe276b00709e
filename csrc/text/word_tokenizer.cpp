#include "word_tokenizer.h"

#include <stdexcept>

#include "unicode.h"

namespace bertnli {

WordTokenizer::WordTokenizer(const VocabItems& vocab, SpecialIds ids) : Tokenizer(ids), map_(vocab) {}

template <class Push>
size_t WordTokenizer::encode_words(std::string_view chunk, Limit limit, const Push& push) const {
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
    if (++count <= limit.store) push(id);
    if (count >= limit.store && !limit.count_all) break;
  }
  return count;
}

size_t WordTokenizer::encode_chunk(std::string_view chunk, Limit limit, IdBuffer& out) const {
  return encode_words(chunk, limit, [&](int32_t id) { out.push(id); });
}

int32_t* WordTokenizer::encode_short_chunk(std::string_view chunk, ChunkKey, int32_t* to) const {
  encode_words(chunk, {}, [&](int32_t id) { *to++ = id; });
  return to;
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

}  // namespace bertnli

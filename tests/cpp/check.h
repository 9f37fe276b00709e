// What the tests of the text stage share.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "id_buffer.h"
#include "trie.h"

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (false)

inline std::mt19937 rng(1);
inline size_t below(size_t n) { return rng() % n; }

inline std::string random_text(std::string_view alphabet, size_t longest) {
  std::string s(below(longest + 1), ' ');
  for (char& c : s) c = alphabet[below(alphabet.size())];
  return s;
}

// Text at the end of memory of its own size: AddressSanitizer sees a read beyond it.
struct Exact {
  explicit Exact(std::string_view text) : bytes(text.begin(), text.end()) { bytes.shrink_to_fit(); }
  std::vector<char> bytes;
  const char* begin() const { return bytes.data(); }
  const char* end() const { return bytes.data() + bytes.size(); }
  std::string_view view() const { return {bytes.data(), bytes.size()}; }
};

inline std::vector<int32_t> list(const bertnli::IdBuffer& ids) { return {ids.data(), ids.data() + ids.size()}; }

// A small WordPiece vocabulary.
inline const bertnli::VocabItems& pieces() {
  static const bertnli::VocabItems items = [] {
    bertnli::VocabItems all;
    for (const char* t : {"[PAD]", "[UNK]", "[CLS]",        "[SEP]", "[MASK]", "the", "un", "##aff", "##able", "a",
                          "##a",   "b",     "##b",          "#",     "[",      "]",   ".",  ",",     "(",      ")",
                          "e",     "##e",   "\xE4\xB8\xAD", "ab",    "##ba"}) {
      all.emplace_back(t, static_cast<int32_t>(all.size()));
    }
    return all;
  }();
  return items;
}

void test_structures();
void test_tokenizers();

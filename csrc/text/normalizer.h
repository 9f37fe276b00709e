// BERT's normaliser and pre-tokeniser, one character at a time: the slow path, for all of Unicode.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ascii.h"
#include "unicode.h"

namespace bertnli {

// Special tokens that are found in the raw text. Each begins with '['.
using Literals = std::vector<std::pair<std::string, int32_t>>;

inline const Literals::value_type* literal_at(const Literals& literals, std::string_view rest) {
  const auto found =
      std::find_if(literals.begin(), literals.end(), [&](const auto& item) { return rest.starts_with(item.first); });
  return found == literals.end() ? nullptr : &*found;
}

// Tells `words` what a text becomes:
//   add(c)             one more character of the current word
//   end_word()         the word, if it has any characters, is complete
//   special(id, size)  a literal of `size` characters, which is a word
//   full()             true: no more is wanted
//   source             (where kTraced) the number of the character of the text that what follows comes from
template <class Words>
class Normalizer {
 public:
  Normalizer(const AsciiTable& ascii, const Literals& literals, bool lowercase, Words& words)
      : ascii_(ascii), literals_(literals), lowercase_(lowercase), words_(words) {}

  void run(std::string_view text) {
    const char *p = text.data(), *end = p + text.size();
    [[maybe_unused]] int32_t at = 0;
    while (p < end && !words_.full()) {
      if constexpr (Words::kTraced) words_.source = at++;
      const auto b = static_cast<unsigned char>(*p);
      if (b >= 0x80) {
        const CodePoint c = decode_utf8(p, end);
        p += c.size;
        character(c.value);
        continue;
      }
      const uint8_t a = ascii_[b];
      if (a > AsciiTable::kPunctuation) {
        starter();
        words_.add(a);
      } else if (a == AsciiTable::kPunctuation) {
        const auto* literal = b == '[' ? literal_at(literals_, {p, static_cast<size_t>(end - p)}) : nullptr;
        if (literal != nullptr) {
          end_word();
          words_.special(literal->second, literal->first.size());
          p += literal->first.size();
          at += static_cast<int32_t>(literal->first.size()) - 1;
          continue;
        }
        single(b);
      } else if (a == AsciiTable::kSpace) {
        end_word();
      }
      ++p;
    }
    end_word();
  }

 private:
  void character(char32_t c) {
    const CharInfo& info = char_info(c);
    switch (lowercase_ ? info.lower : info.cased) {
      case Kind::kKeep:
        if (lowercase_ && info.rank != 0) {
          mark(c, info.rank, true);
        } else {
          starter();
          put(c, info);
        }
        break;
      case Kind::kDelete:
        // A stripped mark only affects the places of its neighbours.
        if constexpr (Words::kTraced) {
          if (lowercase_ && info.rank != 0) mark(0, info.rank, true);
        }
        break;
      case Kind::kSpace:
        end_word();
        break;
      case Kind::kCjk:
        end_word();
        if (lowercase_ && info.mapped != 0) {
          put_mapped(info);
        } else {
          words_.add(c);
        }
        end_word();
        break;
      case Kind::kMapped:
        starter();
        put_mapped(info);
        break;
      case Kind::kHangul: {
        const char32_t s = c - 0xAC00;
        starter();
        words_.add(0x1100 + s / 588);
        words_.add(0x1161 + s % 588 / 28);
        if (s % 28 != 0) words_.add(0x11A7 + s % 28);
        break;
      }
      case Kind::kBarrier:
        starter();
        break;
    }
  }
  void put_mapped(const CharInfo& info) {
    for (const char32_t m : mapped(info)) {
      const CharInfo& i = char_info(m);
      if (i.rank != 0) {
        mark(m, i.rank, false);
      } else {
        starter();
        put(m, i);
      }
    }
  }
  // A character after normalisation, which may be punctuation.
  void put(char32_t c, const CharInfo& info) {
    if (info.punctuation) {
      single(c);
    } else {
      words_.add(c);
    }
  }
  // A character that is a word by itself.
  void single(char32_t c) {
    end_word();
    words_.add(c);
    words_.end_word();
  }
  void end_word() {
    starter();
    words_.end_word();
  }

  // Stores a combining mark until the next starter, when marks are sorted by class (canonical order). c is 0 for a
  // stripped mark; `first` is true for the first mark that a character of the text became.
  void mark(char32_t c, int rank, bool first) {
    if constexpr (Words::kTraced) {
      if (marks_.empty()) before_ = words_.source;
      if (first) sources_.push_back(words_.source);
    }
    marks_.push_back({c, rank, first});
  }
  void starter() {
    if (!marks_.empty()) flush_marks();
  }
  // As `tokenizers` has it, the k-th mark of the sorted run gets the place of the run's k-th character.
  void flush_marks() {
    std::stable_sort(marks_.begin(), marks_.end(), [](const Mark& a, const Mark& b) { return a.rank < b.rank; });
    if constexpr (Words::kTraced) {
      const int32_t now = std::exchange(words_.source, before_);
      size_t k = 0;
      for (const Mark& m : marks_) {
        if (m.first) words_.source = sources_[k++];
        if (m.c != 0) words_.add(m.c);
      }
      words_.source = now;
      sources_.clear();
    } else {
      for (const Mark& m : marks_) words_.add(m.c);
    }
    marks_.clear();
  }

  struct Mark {
    char32_t c;
    int rank;
    bool first;
  };

  const AsciiTable& ascii_;
  const Literals& literals_;
  const bool lowercase_;
  Words& words_;
  std::vector<Mark> marks_;
  std::vector<int32_t> sources_;  // of the marks that are `first`
  int32_t before_ = 0;            // the place of the character before the marks
};

}  // namespace bertnli

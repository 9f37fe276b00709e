// Lines of a file, and a strict scanner of one JSON value a line.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "unicode.h"

namespace bertnli {

// An error at a byte of the file. The line number is counted when the error is reported.
struct ErrorAt {
  enum class Kind {
    kRow,
    kValue,
    kSyntax,
    kUtf8
  };  // kUtf8: `where` is a byte that is not UTF-8, and the message empty
  const char* where;
  std::string message;
  Kind kind = Kind::kRow;
  bool with_column() const { return kind == Kind::kValue || kind == Kind::kSyntax; }
};

// Throws ErrorAt at the first byte that is not UTF-8.
inline void check_utf8(std::string_view text) {
  const size_t bad = find_invalid_utf8(text);
  if (bad != std::string_view::npos) throw ErrorAt{text.data() + bad, {}, ErrorAt::Kind::kUtf8};
}

// What to say of a byte that is not UTF-8, at this position of the file.
inline std::string not_utf8(char byte, size_t position) {
  constexpr char kHex[] = "0123456789abcdef";
  const auto b = static_cast<unsigned char>(byte);
  return std::string("byte 0x") + kHex[b >> 4] + kHex[b & 15] + " at position " + std::to_string(position) +
         " is not UTF-8; save the text as UTF-8, or name its encoding";
}

// Characters of UTF-8 between two places.
inline size_t count_characters(const char* from, const char* to) {
  return static_cast<size_t>(
      std::count_if(from, to, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

// Python's universal newlines: \n, \r\n and \r end a line.
class Lines {
 public:
  Lines(const char* begin, const char* end) : p(begin), end(end) {}
  const char *p, *end;  // what is left

  bool next(std::string_view& line) {
    if (p >= end) return false;
    if (newline_ < p) {  // (searched once, however many lone \r come before it)
      newline_ = static_cast<const char*>(std::memchr(p, '\n', static_cast<size_t>(end - p)));
      if (newline_ == nullptr) newline_ = end;
    }
    const char *stop = newline_, *after = stop < end ? stop + 1 : end;
    if (const void* cr = std::memchr(p, '\r', static_cast<size_t>(stop - p))) {
      stop = static_cast<const char*>(cr);
      if (!(stop + 2 == after && stop[1] == '\n')) after = stop + 1;  // a lone \r ends the line too
    }
    line = {p, static_cast<size_t>(stop - p)};
    p = after;
    return true;
  }

 private:
  const char* newline_ = nullptr;
};

// For messages: in quotes, and shortened.
inline std::string shortened(std::string_view s) {
  constexpr size_t kMost = 40;
  size_t n = s.size();
  if (n > kMost) {
    n = kMost;
    while (n > 0 && (static_cast<unsigned char>(s[n]) & 0xC0) == 0x80) --n;
  }
  std::string result = "'";
  result.append(s.substr(0, n)).append(n < s.size() ? "...'" : "'");
  return result;
}

// A scanner of one JSON value that takes what Python's json module takes: RFC 8259, NaN and Infinity. Strings are
// decoded only on request.
class Json {
 public:
  const char* p = nullptr;

  void reset(std::string_view line) {
    p = line.data();
    end_ = p + line.size();
    keys_.clear();
  }

  [[noreturn]] void fail(const std::string& message, ErrorAt::Kind kind = ErrorAt::Kind::kSyntax) const {
    throw ErrorAt{p, message, kind};
  }
  void space() {
    while (p < end_ && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) ++p;
  }
  bool at(char c) const { return p < end_ && *p == c; }
  bool done() const { return p >= end_; }
  void expect(char c, const char* what) {
    space();
    if (!at(c))
      fail(std::string("expected ") + what + (p < end_ ? ", found " + shortened(here()) : ", found the line's end"));
    ++p;
  }
  // Decodes to *out unless it is null. Lone surrogates are an error, unless nobody reads the string.
  void string(std::string* out, bool lone_surrogates = false) {
    expect('"', "a string");
    for (;;) {
      const char* from = p;
      while (p < end_ && *p != '"' && *p != '\\' && static_cast<unsigned char>(*p) >= 0x20) ++p;
      if (out != nullptr) out->append(from, p);
      if (p >= end_) fail("the string has no end");
      if (*p == '"') {
        ++p;
        return;
      }
      if (*p != '\\') fail("a control character in a string must be escaped");
      escape(out, lone_surrogates || out == nullptr);
    }
  }
  void skip_value(int depth = 0) {
    space();
    if (p >= end_) fail("expected a value, found the line's end");
    if (depth > 200) fail("values are nested too deeply");
    switch (*p) {
      case '"':
        return string(nullptr);
      case '{':
        return members([&] { skip_value(depth + 1); });
      case '[':
        ++p;
        space();
        if (at(']')) {
          ++p;
          return;
        }
        for (;;) {
          skip_value(depth + 1);
          space();
          if (at(']')) {
            ++p;
            return;
          }
          expect(',', "',' or ']'");
        }
      default:
        (void)scalar();
    }
  }
  // A number, true, false or null, as it is written.
  std::string_view scalar() {
    const char* from = p;
    for (const std::string_view word : {"true", "false", "null", "NaN", "Infinity", "-Infinity"}) {
      if (!std::string_view(p, static_cast<size_t>(end_ - p)).starts_with(word)) continue;
      p += word.size();
      return word;
    }
    const auto digits = [&] {
      if (p >= end_ || *p < '0' || *p > '9') unexpected();
      while (p < end_ && *p >= '0' && *p <= '9') ++p;
    };
    if (at('-')) ++p;
    if (at('0')) {
      ++p;
    } else {
      digits();
    }
    if (at('.')) {
      ++p;
      digits();
    }
    if (at('e') || at('E')) {
      ++p;
      if (at('+') || at('-')) ++p;
      digits();
    }
    return {from, static_cast<size_t>(p - from)};
  }
  // An object. Calls value() after each key, which is in `key`; value() must read the value. No key may be repeated.
  std::string key;
  template <class Value>
  void members(const Value& value) {
    expect('{', "an object");
    space();
    if (at('}')) {
      ++p;
      return;
    }
    const size_t first = keys_.size();
    for (;;) {
      space();
      const char* where = p;
      key.clear();
      string(&key, true);
      keys_.emplace_back(std::hash<std::string>()(key), where);
      expect(':', "':'");
      value();
      space();
      if (at('}')) break;
      expect(',', "',' or '}'");
    }
    ++p;
    check_repeats(first);
  }

 private:
  std::string_view here() const {  // whole characters
    const auto left = static_cast<size_t>(end_ - p);
    size_t n = std::min<size_t>(left, 12);
    while (n > 0 && n < left && (static_cast<unsigned char>(p[n]) & 0xC0) == 0x80) --n;
    return {p, n};
  }
  [[noreturn]] void unexpected() const {
    fail(p < end_ ? "expected a value, found " + shortened(here()) : "expected a value, found the line's end");
  }
  char32_t hex4() {
    char32_t v = 0;
    for (int i = 0; i < 4; ++i, ++p) {
      const char c = p < end_ ? *p : '\0';
      const int d = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
      if (d < 0) fail("expected four hexadecimal digits behind \\u");
      v = v * 16 + static_cast<char32_t>(d);
    }
    return v;
  }
  // No two of the keys from `first` on are equal. Forgets them.
  void check_repeats(size_t first) {
    const auto begin = keys_.begin() + static_cast<std::ptrdiff_t>(first);
    std::sort(begin, keys_.end());
    for (auto later = begin; later != keys_.end(); ++later) {
      if (later == begin || (later - 1)->first != later->first) continue;
      std::string keys[2];
      for (const int i : {0, 1}) {
        p = (later - 1 + i)->second;
        string(&keys[i], true);
      }
      p = later->second;
      if (keys[0] == keys[1]) fail("the key " + shortened(keys[0]) + " is repeated", ErrorAt::Kind::kValue);
    }
    keys_.erase(begin, keys_.end());
  }
  void escape(std::string* out, bool lone_surrogates) {
    ++p;
    const char c = p < end_ ? *p : '\0';
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const size_t letter = kLetters.find(c);
    if (letter != kLetters.npos) {
      if (out != nullptr) out->push_back(kMeanings[letter]);
      ++p;
      return;
    }
    if (c != 'u') fail("unknown escape in a string");
    ++p;
    char32_t v = hex4();
    if (v >= 0xD800 && v <= 0xDFFF) {
      const char* behind = p;
      char32_t low = 0;
      if (v < 0xDC00 && end_ - p >= 2 && p[0] == '\\' && p[1] == 'u') {
        p += 2;
        low = hex4();
      }
      if (low >= 0xDC00 && low <= 0xDFFF) {
        v = 0x10000 + ((v - 0xD800) << 10) + (low - 0xDC00);
      } else {
        p = behind;
        if (!lone_surrogates) fail("a lone surrogate is no text", ErrorAt::Kind::kValue);
      }
    }
    if (out != nullptr) {
      char bytes[4];
      out->append(bytes, static_cast<size_t>(encode_utf8(v, bytes)));
    }
  }

  const char* end_ = nullptr;
  std::vector<std::pair<size_t, const char*>> keys_;  // hash and place of each key of the objects that are open
};

}  // namespace bertnli

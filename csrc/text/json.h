// Lines of a file, and a strict scanner of one JSON value a line.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "unicode.h"

namespace bertnli {

// An error at a byte of the file. The line number is counted when the error is reported.
struct ErrorAt {
  const char* where;
  std::string message;
  bool with_column = false;
};

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
inline std::string quoted(std::string_view s) {
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

// A strict scanner of one JSON value (RFC 8259). Strings are decoded only on request.
class Json {
 public:
  Json(const char* p, const char* end) : p(p), end_(end) {}
  const char* p;

  [[noreturn]] void fail(const std::string& message) const { throw ErrorAt{p, message, true}; }
  void space() {
    while (p < end_ && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) ++p;
  }
  bool at(char c) const { return p < end_ && *p == c; }
  bool done() const { return p >= end_; }
  void expect(char c, const char* what) {
    space();
    if (!at(c))
      fail(std::string("expected ") + what + (p < end_ ? ", found " + quoted(here()) : ", found the line's end"));
    ++p;
  }
  // Decodes to *out unless it is null.
  void string(std::string* out) {
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
      escape(out);
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
      case 't':
        return word("true");
      case 'f':
        return word("false");
      case 'n':
        return word("null");
      default:
        (void)number();
    }
  }
  // An object. Calls value() after each key, which is in `key`; value() must read the value.
  std::string key;
  template <class Value>
  void members(const Value& value) {
    expect('{', "an object");
    space();
    if (at('}')) {
      ++p;
      return;
    }
    for (;;) {
      key.clear();
      string(&key);
      expect(':', "':'");
      value();
      space();
      if (at('}')) {
        ++p;
        return;
      }
      expect(',', "',' or '}'");
    }
  }
  void word(std::string_view w) {
    if (!std::string_view(p, static_cast<size_t>(end_ - p)).starts_with(w)) unexpected();
    p += w.size();
  }
  std::string_view number() {
    const char* from = p;
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

 private:
  std::string_view here() const { return {p, std::min<size_t>(static_cast<size_t>(end_ - p), 12)}; }
  [[noreturn]] void unexpected() const {
    fail(p < end_ ? "expected a value, found " + quoted(here()) : "expected a value, found the line's end");
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
  void escape(std::string* out) {
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
      const bool high = v < 0xDC00;
      if (!high || end_ - p < 2 || p[0] != '\\' || p[1] != 'u') fail("a lone surrogate is no text");
      p += 2;
      const char32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("a lone surrogate is no text");
      v = 0x10000 + ((v - 0xD800) << 10) + (low - 0xDC00);
    }
    if (out != nullptr) {
      char bytes[4];
      out->append(bytes, static_cast<size_t>(encode_utf8(v, bytes)));
    }
  }

  const char* end_;
};

}  // namespace bertnli

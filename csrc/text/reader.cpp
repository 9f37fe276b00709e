#include "reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>
#include <system_error>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "parallel.h"
#include "unicode.h"

namespace bertnli {
namespace {

// A file's bytes: mapped where it is a regular file, read otherwise (pipes).
class FileBytes {
 public:
  explicit FileBytes(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(path);
    struct stat st;
    if (fstat(fd, &st) != 0) fail(path, fd);
    if (S_ISREG(st.st_mode) && st.st_size > 0) {
      size_ = static_cast<size_t>(st.st_size);
      void* p = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
      if (p != MAP_FAILED) {
        mapped_ = p;
        (void)madvise(p, size_, MADV_SEQUENTIAL);
        close(fd);
        return;
      }
    }
    char block[1 << 16];
    for (;;) {
      const ssize_t n = ::read(fd, block, sizeof block);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail(path, fd);
      if (n == 0) break;
      copy_.append(block, static_cast<size_t>(n));
    }
    close(fd);
  }
  ~FileBytes() {
    if (mapped_ != nullptr) munmap(mapped_, size_);
  }
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  std::string_view view() const {
    return mapped_ != nullptr ? std::string_view(static_cast<const char*>(mapped_), size_) : std::string_view(copy_);
  }

 private:
  [[noreturn]] static void fail(const std::string& path, int fd = -1) {
    const int code = errno;
    if (fd >= 0) close(fd);
    throw std::system_error(code, std::generic_category(), path);
  }
  void* mapped_ = nullptr;
  size_t size_ = 0;
  std::string copy_;
};

// An error at a byte of the file: its line is counted only now.
struct ErrorAt {
  const char* where;
  std::string message;
  bool with_column = false;
};

// Python's universal newlines: \n, \r\n and \r end a line.
struct Lines {
  const char *p, *end;
  bool next(std::string_view& line) {
    if (p >= end) return false;
    const auto left = static_cast<size_t>(end - p);
    const char* stop = static_cast<const char*>(std::memchr(p, '\n', left));
    const char* after = stop != nullptr ? stop + 1 : end;
    if (stop == nullptr) stop = end;
    if (const void* cr = std::memchr(p, '\r', static_cast<size_t>(stop - p))) {
      stop = static_cast<const char*>(cr);
      if (!(stop + 2 == after && stop[1] == '\n')) after = stop + 1;  // a lone \r: what follows is another line
    }
    line = {p, static_cast<size_t>(stop - p)};
    p = after;
    return true;
  }
};

size_t line_number(std::string_view file, const char* where) {
  Lines lines{file.data(), file.data() + file.size()};
  std::string_view line;
  size_t n = 0;
  while (lines.p <= where && lines.next(line)) ++n;
  return std::max<size_t>(n, 1);
}

// What one thread makes of its part of the file.
struct Part {
  std::string arena;
  std::vector<int64_t> bounds;  // premise start, end, hypothesis start, end of each row
  std::vector<int64_t> labels;
  int64_t dropped = 0;
};

std::string quoted(std::string_view s) {
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

std::string join(const std::vector<std::string>& names) {
  std::string all;
  for (const auto& n : names) all += (all.empty() ? "" : ", ") + n;
  return all;
}

std::vector<std::string_view> split_tabs(std::string_view line) {
  std::vector<std::string_view> fields;
  for (size_t at = 0;;) {
    const size_t tab = line.find('\t', at);
    fields.push_back(line.substr(at, tab == line.npos ? tab : tab - at));
    if (tab == line.npos) return fields;
    at = tab + 1;
  }
}

// Blocks small enough for the compiler to count in bytes, 16 or more at a time.
size_t count_tabs(const char* p, const char* end) {
  size_t total = 0;
  while (p < end) {
    const char* stop = p + std::min<ptrdiff_t>(end - p, 240);
    uint8_t n = 0;
    for (; p < stop; ++p) n = static_cast<uint8_t>(n + (*p == '\t'));
    total += n;
  }
  return total;
}

class PairParser {
 public:
  explicit PairParser(const ReadOptions& options) : options_(options) {}

  // The columns of a tab-separated file, by its header.
  void read_header(std::string_view header) {
    const auto fields = split_tabs(header);
    columns_ = fields.size();
    optional_ = 0;  // the official files end with five annotators' labels, which a row may lack
    while (optional_ < columns_ && is_annotator(fields[columns_ - 1 - optional_])) ++optional_;
    const auto find = [&](std::initializer_list<std::string_view> names) -> size_t {
      for (const auto name : names) {
        const auto it = std::find(fields.begin(), fields.end(), name);
        if (it != fields.end()) return static_cast<size_t>(it - fields.begin());
      }
      std::string wanted, found;
      for (const auto name : names) wanted += (wanted.empty() ? "'" : " or '") + std::string(name) + "'";
      for (const auto f : fields) found += (found.empty() ? "" : ", ") + quoted(f);
      std::string hint = options_.parse && wanted.find("parse") != wanted.npos
                             ? "; use columns=\"text\" for a file without parses"
                             : "";
      throw ErrorAt{header.data(), "expected a header with a column " + wanted + ", found the columns " + found + hint};
    };
    label_ = find({"gold_label", "label"});
    if (options_.parse) {
      premise_ = find({"sentence1_binary_parse"});
      hypothesis_ = find({"sentence2_binary_parse"});
    } else {
      premise_ = find({"sentence1", "premise"});
      hypothesis_ = find({"sentence2", "hypothesis"});
    }
    last_ = std::max({label_, premise_, hypothesis_});
    optional_ = std::min(optional_, columns_ - 1 - last_);
  }

  void tsv_row(std::string_view line, Part& part) const {
    if (line.empty()) return;
    check_utf8(line);
    std::string_view fields[3];
    const char *p = line.data(), *end = p + line.size();
    size_t column = 0;
    for (; column <= last_; ++column) {
      const void* tab = std::memchr(p, '\t', static_cast<size_t>(end - p));
      const char* stop = tab != nullptr ? static_cast<const char*>(tab) : end;
      const std::string_view field(p, static_cast<size_t>(stop - p));
      if (column == label_) fields[0] = field;
      if (column == premise_) fields[1] = field;
      if (column == hypothesis_) fields[2] = field;
      if (tab == nullptr) {
        p = nullptr;
        ++column;
        break;
      }
      p = stop + 1;
    }
    const size_t found = column + (p != nullptr ? count_tabs(p, end) + 1 : 0);
    if (found > columns_ || found + optional_ < columns_) {
      throw ErrorAt{line.data(),
                    "expected " + std::to_string(columns_) + " tab-separated columns, found " + std::to_string(found)};
    }
    int64_t label;
    if (!label_id(fields[0], line.data(), label)) {
      ++part.dropped;
      return;
    }
    add(part, label, fields[1], fields[2]);
  }

  void json_row(std::string_view line, Part& part) const;

 private:
  static bool is_annotator(std::string_view name) {
    return name.size() == 6 && name.starts_with("label") && name[5] >= '1' && name[5] <= '9';
  }
  static void check_utf8(std::string_view line) {
    const size_t bad = find_invalid_utf8(line);
    if (bad != std::string_view::npos) {
      throw ErrorAt{line.data(), "expected UTF-8 text, found an invalid byte at position " + std::to_string(bad + 1) +
                                     " of the line; convert the file to UTF-8"};
    }
  }
  // False where the row has no label, or an unknown one that may be dropped.
  bool label_id(std::string_view name, const char* where, int64_t& id) const {
    const auto& names = options_.label_names;
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == name) {
        id = static_cast<int64_t>(i);
        return true;
      }
    }
    if (name.empty() || name == "-" || name == "-1") return false;
    if (!options_.strict_labels) return false;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data(), end, id);
    if (parsed.ec == std::errc() && parsed.ptr == end && id >= 0 && id < static_cast<int64_t>(names.size()))
      return true;
    throw ErrorAt{where, "unknown label " + quoted(name) + "; the known ones are " + join(names)};
  }
  void add(Part& part, int64_t label, std::string_view premise, std::string_view hypothesis) const {
    part.labels.push_back(label);
    for (const std::string_view text : {premise, hypothesis}) {
      part.bounds.push_back(static_cast<int64_t>(part.arena.size()));
      if (options_.parse) {
        extract_text(text, part.arena);
      } else {
        part.arena.append(text);
      }
      part.bounds.push_back(static_cast<int64_t>(part.arena.size()));
    }
  }

  const ReadOptions& options_;
  size_t columns_ = 0, optional_ = 0, label_ = 0, premise_ = 0, hypothesis_ = 0, last_ = 0;
};

// A strict scanner of one JSON value (RFC 8259). Strings are decoded only where they are wanted.
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
  // An object; value() is called behind each key, which is then in `key`.
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

void PairParser::json_row(std::string_view line, Part& part) const {
  check_utf8(line);
  Json json(line.data(), line.data() + line.size());
  json.space();
  if (json.done()) return;
  std::optional<std::string> gold, label, first, second, other_first, other_second;
  const auto text = [&](std::optional<std::string>& to) {
    json.space();
    if (!json.at('"')) json.fail("expected a string for '" + json.key + "'");
    to.emplace();
    json.string(&*to);
  };
  const auto name = [&](std::optional<std::string>& to) {
    json.space();
    to.emplace();
    if (json.at('"')) {
      json.string(&*to);
    } else if (json.at('n')) {
      json.word("null");
    } else {
      const std::string key = json.key;
      const std::string_view n = json.number();
      if (n.find_first_of(".eE") != n.npos) json.fail("expected a name or an integer for '" + key + "'");
      to->assign(n);
    }
  };
  json.members([&] {
    const std::string& k = json.key;
    if (k == "gold_label") return name(gold);
    if (k == "label") return name(label);
    if (k == (options_.parse ? "sentence1_binary_parse" : "sentence1")) return text(first);
    if (k == (options_.parse ? "sentence2_binary_parse" : "sentence2")) return text(second);
    if (!options_.parse && k == "premise") return text(other_first);
    if (!options_.parse && k == "hypothesis") return text(other_second);
    json.skip_value();
  });
  json.space();
  if (!json.done()) json.fail("expected the line's end behind the object");
  const auto& which = gold ? gold : label;
  if (!which) throw ErrorAt{line.data(), "expected a field 'gold_label' or 'label', found neither"};
  int64_t id;
  if (!label_id(*which, line.data(), id)) {
    ++part.dropped;
    return;
  }
  const auto& premise = first ? first : other_first;
  const auto& hypothesis = second ? second : other_second;
  if (!premise || !hypothesis) {
    const std::string n = premise ? "2" : "1";
    throw ErrorAt{line.data(), options_.parse ? "expected a field 'sentence" + n +
                                                    "_binary_parse', found none; use "
                                                    "columns=\"text\" for a file without parses"
                                              : "expected a field 'sentence" + n + "' or '" +
                                                    (premise ? "hypothesis" : "premise") + "', found neither"};
  }
  add(part, id, *premise, *hypothesis);
}

}  // namespace

namespace {

// Builds one cleaned text. White space waits until a character follows it: a run of one is kept as it is.
class ParseCleaner {
 public:
  explicit ParseCleaner(char* out) : first_(out), to_(out) {}

  void space(const char* p, int size) {
    if (run_++ == 0) {
      run_at_ = p;
      run_size_ = size;
    }
  }
  void spaces(int n) {
    if (n == 0) return;
    if (run_ == 0) {
      space(" ", 1);
      --n;
    }
    run_ += static_cast<size_t>(n);
  }
  // Where the next kept bytes go.
  char* gap() {
    if (run_ != 0) {
      if (to_ != first_) {
        if (run_ > 1) {
          *to_++ = ' ';
        } else {
          for (int i = 0; i < run_size_; ++i) *to_++ = run_at_[i];
        }
      }
      run_ = 0;
    }
    return to_;
  }
  void keep(const char* p, int size) {
    char* to = gap();
    for (int i = 0; i < size; ++i) to[i] = p[i];
    to_ += size;
  }
  void kept(int size) { to_ += size; }
  size_t size() const { return static_cast<size_t>(to_ - first_); }

 private:
  char *const first_, *to_;
  const char* run_at_ = nullptr;
  size_t run_ = 0;
  int run_size_ = 0;
};

}  // namespace

void extract_text(std::string_view parse, std::string& out) {
  const char *p = parse.data(), *end = p + parse.size();
  const size_t begin = out.size();
  out.resize(begin + parse.size() + 16);  // the text never grows; 16 bytes are copied at a time
  ParseCleaner text(out.data() + begin);
  const auto one = [&] {
    const auto b = static_cast<unsigned char>(*p);
    const CodePoint c = b < 0x80 ? CodePoint{b, 1} : decode_utf8(p, end);
    if (is_python_space(c.value)) {
      text.space(p, c.size);
    } else if (b != '(' && b != ')') {
      text.keep(p, c.size);
    }
    p += c.size;
  };
#if defined(__SSE2__)
  while (end - p >= 32) {  // so that 16 bytes may be read from each of the next 16
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const auto bits = [](__m128i x) { return static_cast<unsigned>(_mm_movemask_epi8(x)); };
    if (bits(_mm_cmplt_epi8(v, _mm_set1_epi8(' '))) != 0) {  // control characters, or beyond ASCII
      for (const char* stop = p + 16; p < stop;) one();
      continue;
    }
    const unsigned spaces = bits(_mm_cmpeq_epi8(v, _mm_set1_epi8(' ')));
    const unsigned brackets = bits(_mm_cmpeq_epi8(_mm_and_si128(v, _mm_set1_epi8(~1)), _mm_set1_epi8('(')));
    unsigned keep = ~(spaces | brackets) & 0xFFFFu, seen = 0;  // seen: bits before the current place
    while (keep != 0) {
      const int start = std::countr_zero(keep), size = std::countr_one(keep >> start);
      const unsigned before = (1u << start) - 1;
      text.spaces(std::popcount(spaces & before & ~seen));
      std::memcpy(text.gap(), p + start, 16);
      text.kept(size);
      seen = before | ((1u << size) - 1) << start;
      keep &= ~seen;
    }
    text.spaces(std::popcount(spaces & ~seen));
    p += 16;
  }
#endif
  while (p < end) one();
  out.resize(begin + text.size());
}

PairTable read_pairs(const std::string& path, const ReadOptions& options) {
  const FileBytes file(path);
  std::string_view text = file.view();
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  PairTable table;
  try {
    PairParser parser(options);
    Lines lines{text.data(), text.data() + text.size()};
    if (text.find_first_not_of("\r\n") == text.npos) throw ErrorAt{text.data(), "the file is empty"};
    if (!options.json_lines) {
      std::string_view header;
      lines.next(header);
      const size_t bad = find_invalid_utf8(header);
      if (bad != header.npos) throw ErrorAt{header.data(), "expected a header in UTF-8"};
      parser.read_header(header);
    }
    constexpr size_t kBytesAThread = size_t{1} << 18;
    const auto size = static_cast<size_t>(lines.end - lines.p);
    const size_t parts = std::clamp<size_t>(size / kBytesAThread, 1, static_cast<size_t>(std::max(options.threads, 1)));
    std::vector<const char*> cuts{lines.p};
    for (size_t i = 1; i < parts; ++i) {
      const char* at = std::max(lines.p + size * i / parts, cuts.back());
      const void* newline = std::memchr(at, '\n', static_cast<size_t>(lines.end - at));
      cuts.push_back(newline != nullptr ? static_cast<const char*>(newline) + 1 : lines.end);
    }
    cuts.push_back(lines.end);
    std::vector<Part> done(parts);
    run_parts(parts, [&](size_t i) {
      Lines own{cuts[i], cuts[i + 1]};
      std::string_view line;
      while (own.next(line)) options.json_lines ? parser.json_row(line, done[i]) : parser.tsv_row(line, done[i]);
    });
    size_t bytes = 0, rows = 0;
    for (const Part& p : done) bytes += p.arena.size(), rows += p.labels.size();
    table.arena = std::move(done[0].arena);
    table.arena.reserve(bytes);
    for (auto* v : {&table.premises.starts, &table.premises.ends, &table.hypotheses.starts, &table.hypotheses.ends,
                    &table.labels}) {
      v->reserve(rows);
    }
    for (size_t i = 0; i < parts; ++i) {
      const Part& part = done[i];
      const auto shift = i == 0 ? 0 : static_cast<int64_t>(table.arena.size());
      if (i != 0) table.arena += part.arena;
      for (size_t k = 0; k < part.bounds.size(); k += 4) {
        table.premises.starts.push_back(part.bounds[k] + shift);
        table.premises.ends.push_back(part.bounds[k + 1] + shift);
        table.hypotheses.starts.push_back(part.bounds[k + 2] + shift);
        table.hypotheses.ends.push_back(part.bounds[k + 3] + shift);
      }
      table.labels.insert(table.labels.end(), part.labels.begin(), part.labels.end());
      table.dropped += part.dropped;
    }
  } catch (const ErrorAt& e) {
    const size_t line = line_number(text, e.where);
    std::string place = path + ":" + std::to_string(line);
    if (e.with_column) {
      const char* start = e.where;
      while (start > text.data() && start[-1] != '\n' && start[-1] != '\r') --start;
      size_t column = 1;  // in characters, as editors count
      for (const char* p = start; p < e.where; ++p) column += (static_cast<unsigned char>(*p) & 0xC0) != 0x80;
      place += ":" + std::to_string(column);
    }
    throw FormatError(place + ": " + e.message);
  }
  return table;
}

}  // namespace bertnli

// Tables with named columns from blocks of bytes: delimited text and JSON objects, to texts in one block of UTF-8.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "growing.h"
#include "json.h"

namespace bertnli {

// What a value was where it came from: text, null, or another value as JSON writes it.
enum class Value : uint8_t { kText, kNull, kOther };

// N rows of k values. Value c of row i is the bytes bounds[i * k + c] to bounds[i * k + c + 1] of the arena.
struct Values {
  Values() { bounds.push(0); }
  Growing<char> arena;
  Growing<int64_t> bounds;
  Growing<Value> kinds;  // empty if all are text

  size_t size() const { return bounds.size() - 1; }
  std::string_view operator[](size_t i) const {
    return {arena.data() + bounds[i], static_cast<size_t>(bounds[i + 1] - bounds[i])};
  }
  // The last value ends where the arena does.
  void end_value() { bounds.push(static_cast<int64_t>(arena.size())); }
};

// A row that could not be read, where `keep_bad` asks for it.
struct BadRow {
  int64_t line;
  std::string message, text;
};

struct TableRows {
  Values values;
  Growing<int64_t> lines;  // of each row: the line of its end, or of its begin in a JSON array
  std::vector<BadRow> bad;
};

struct TableOptions {
  enum class Format { kDelimited, kJsonLines, kJsonArray };

  std::string name;  // the file's, for errors
  Format format = Format::kDelimited;
  // Of delimited text:
  char delimiter = ',';
  bool quotes = true;  // read as Python's csv module does, strictly; else they are characters
  bool header = true;  // whether the first line has the columns' names
  // Of JSON:
  std::vector<std::string> keys;  // the columns
  bool whole = false;             // whether the object as it is written is one more column, the last

  size_t bytes = 0;       // about the size of the texts to come, to reserve memory for
  bool keep_bad = false;  // whether broken rows are kept aside; else the first one is an error
};

// Reads a table of which it is given one block after the other. All functions throw FormatError naming file and line.
class TableReader {
 public:
  explicit TableReader(TableOptions options) : options_(std::move(options)) {
    rows_.values.arena.reserve(options_.bytes);
  }

  // The names of the columns of delimited text once their line was read; no names for an empty line.
  const std::optional<std::vector<std::string>>& header() const { return header_; }
  // The columns of delimited text to read, from 0. No row is read before this is called.
  void choose(std::vector<size_t> columns);
  // Reads the rows that end in the bytes so far. `last`: there are no more bytes.
  void feed(std::string_view block, bool last);
  // The rows since the last call.
  TableRows take() { return std::exchange(rows_, {}); }
  size_t rows() const { return rows_.lines.size(); }

 private:
  struct Field {
    const char *begin, *end;
    bool quoted, doubled;  // between quotes; has a doubled quote
    std::string text() const;
  };
  // An error in a row, at a line.
  struct Problem {
    size_t line;
    std::string message;
  };

  const char* parse(const char* p, const char* end, bool last);
  const char* parse_delimited(const char* p, const char* end, bool last);
  const char* split(const char* p, const char* end, bool last, std::optional<Problem>& problem);
  void add_fields(std::string_view row, size_t line);
  void check_width(size_t line);
  const char* parse_json_lines(const char* p, const char* end, bool last);
  const char* parse_json_array(const char* p, const char* end, bool last);
  void read_object();
  void add_object(std::string_view text, size_t line);
  Problem problem_of(const ErrorAt& e, std::string_view text, const std::string& expected) const;
  // Calls work(); a Problem becomes a bad row or a FormatError.
  template <class Work>
  void guarded(std::string_view row, const Work& work);
  [[noreturn]] void fail(const Problem& problem) const;

  const TableOptions options_;
  std::optional<std::vector<std::string>> header_;
  std::optional<std::vector<size_t>> columns_;
  std::string pending_;  // bytes that were not read yet
  size_t retry_ = 0;     // with so many of them
  size_t offset_ = 0;    // of these in the file
  // Where in a JSON array the bytes were read to, and how many characters of its line are before that.
  enum class Array : uint8_t { kBegin, kFirst, kObject, kBehind, kEnd } array_ = Array::kBegin;
  size_t column_ = 0;
  size_t lines_ = 0, width_ = 0, empty_line_ = 0, inner_lines_ = 0;
  std::vector<Field> fields_;
  Json json_;
  std::vector<std::string> texts_;  // of the keys of one object
  std::vector<std::optional<Value>> found_;
  TableRows rows_;
};

// Whether the csv module should read the quotes of delimited text: there are some, and every one opens or closes a
// field, or is doubled inside of such a field.
class QuoteScan {
 public:
  explicit QuoteScan(char delimiter) : delimiter_(delimiter) {}
  void feed(std::string_view block);
  bool may_be_consistent() const { return consistent_; }  // of the bytes so far
  bool consistent() const { return consistent_ && any_ && !inside_; }
  // The first line on which a quote is around a delimiter or a line end, if all lines have equally many delimiters, so
  // that they may be rows whose quotes are characters; else 0.
  size_t ambiguous_line() const {
    const bool last_is_equal = length_ == 0 || !counted_ || first_count_ == delimiters_;
    return equal_ && last_is_equal ? wide_ : 0;
  }

 private:
  bool is_end(char c) const { return c == delimiter_ || c == '\n' || c == '\r'; }

  const char delimiter_;
  bool consistent_ = true, any_ = false, inside_ = false, equal_ = true, counted_ = false;
  char before_ = '\n';
  size_t line_ = 1, wide_ = 0, delimiters_ = 0, length_ = 0, first_count_ = 0;
};

// The distinct ones among texts. `index` has the first place of each, `codes` the number of each text's in `index`.
struct Distinct {
  std::vector<int64_t> index, codes;
};
// starts, ends: n byte ranges, already checked; kinds: of each text, or null if all are the same
Distinct find_distinct(const char* base, const int64_t* starts, const int64_t* ends, const uint8_t* kinds, size_t n);

}  // namespace bertnli

// Files of labelled sentence pairs to rows: tab-separated with a header, or JSON lines.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text_file.h"

namespace bertnli {

// What a label that is none of the names means: an index of a class, -1 where the row is to be dropped, or an error.
struct Label {
  int64_t id = -1;
  std::string error;
};

struct ReadOptions {
  bool json_lines = false;
  bool parse = true;  // the binary-parse columns; else the sentences
  std::vector<std::string> label_names;
  // Called by any thread for the content of a field or of a JSON string, and for another JSON value as it is written.
  std::function<Label(std::string_view text, bool json)> other_label;
  int threads = 1;
};

// Takes the rows of one part of a file, in order.
class PairSink {
 public:
  virtual ~PairSink() = default;
  // Texts as the file has them (a parse with its brackets). If `readable` is not null, the texts stay in memory until
  // `release` and bytes up to `readable` may be read; if it is null, the texts are gone after the call. Throws
  // RowError.
  virtual void row(int64_t label, std::string_view premise, std::string_view hypothesis, const char* readable) = 0;
  // The texts of the rows so far are gone; the rows since the last call were `bytes` bytes of the file.
  virtual void release(size_t bytes) = 0;
};

// An error in a row, thrown by a sink; the reader adds file and line.
struct RowError {
  std::string message;
};

// What reading found besides rows.
struct RowsFound {
  int64_t dropped = 0;      // rows without a label
  bool has_quotes = false;  // a field that was read begins with a double quote
};

// Reads the rows of a file. make_sinks(n, bytes) makes the sinks of its n parts, of about so many bytes each; every
// part has a thread. Throws FormatError, naming the line of a broken row, or FileError.
RowsFound read_rows(const std::string& path, const ReadOptions& options,
                    const std::function<std::vector<PairSink*>(size_t n, size_t bytes)>& make_sinks);

struct TextColumn {
  std::vector<int64_t> starts, ends;  // byte ranges of the arena
};

// All texts in one block of UTF-8, brackets of parses removed.
struct PairTable {
  std::string arena;
  TextColumn premises, hypotheses;
  std::vector<int64_t> labels;
  RowsFound found;
};

PairTable read_pairs(const std::string& path, const ReadOptions& options);

}  // namespace bertnli

// Files of labelled sentence pairs to one block of UTF-8 text: tab-separated with a header, or JSON lines.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace bertnli {

struct ReadOptions {
  bool json_lines = false;
  bool parse = true;          // the binary-parse columns, brackets removed; else the sentences as they are
  bool strict_labels = true;  // an unknown label is an error; else its row is dropped
  std::vector<std::string> label_names;
  int threads = 1;
};

struct TextColumn {
  std::vector<int64_t> starts, ends;  // byte ranges of the arena
};

struct PairTable {
  std::string arena;
  TextColumn premises, hypotheses;
  std::vector<int64_t> labels;
  int64_t dropped = 0;
};

// What is wrong with the file's content; the message begins with file:line.
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws FormatError, or std::system_error where the file cannot be read.
PairTable read_pairs(const std::string& path, const ReadOptions& options);

// D2L's clean-up of a binary parse: "(" and ")" go, two or more white space characters become one space, both ends are
// stripped. Appends to out.
void extract_text(std::string_view parse, std::string& out);

}  // namespace bertnli

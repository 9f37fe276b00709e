// libFuzzer target: any bytes as a table, in one block and in many; rows, broken rows and errors must be the same.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "table.h"
#include "text_file.h"

using namespace bertnli;

static void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// All that reading gives, as text. `block`: bytes of a block, 0 for one block.
static std::string read(const TableOptions& options, std::string_view bytes, size_t block, size_t columns) {
  TableReader reader(options);
  std::string result;
  bool chosen = options.format != TableOptions::Format::kDelimited;
  const auto choose = [&] {
    if (chosen || (options.header && !reader.header())) return;
    std::vector<size_t> some;
    for (size_t i = 0; i < columns; ++i) some.push_back(i);
    if (options.header)
      for (const std::string& name : *reader.header()) result += "[" + name + "]";
    if (options.header && reader.header()->size() < columns) return;
    reader.choose(some);
    chosen = true;
  };
  const auto collect = [&] {
    const TableRows rows = reader.take();
    require(rows.values.arena.size() == static_cast<size_t>(rows.values.bounds[rows.values.size()]), "bounds");
    require(rows.values.kinds.size() == 0 || rows.values.kinds.size() == rows.values.size(), "kinds");
    for (size_t i = 0; i < rows.values.size(); ++i) {
      result += "|" + std::string(rows.values[i]);
      if (rows.values.kinds.size() != 0) result += std::to_string(static_cast<int>(rows.values.kinds[i]));
    }
    for (size_t i = 0; i < rows.lines.size(); ++i) result += "@" + std::to_string(rows.lines[i]);
    for (const BadRow& row : rows.bad) result += "!" + std::to_string(row.line) + row.message + row.text;
  };
  try {
    if (!options.header) choose();
    for (size_t at = 0; at < bytes.size() || at == 0;) {
      const size_t size = block == 0 ? bytes.size() : std::min(block, bytes.size() - at);
      at += size;
      reader.feed(bytes.substr(at - size, size), at >= bytes.size());
      if (!chosen && reader.header()) {
        choose();
        if (!chosen) break;  // fewer columns than are asked for
        reader.feed({}, at >= bytes.size());
      }
      if (at >= bytes.size()) break;
    }
    collect();
  } catch (const FormatError& e) {
    return e.what();  // rows before an error are not compared: how many were taken depends on the blocks
  }
  return result;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  TableOptions options;
  options.name = "file";
  options.format = static_cast<TableOptions::Format>(data[0] % 3);
  options.delimiter = (data[0] & 4) != 0 ? '\t' : ',';
  options.quotes = (data[0] & 8) != 0;
  options.header = (data[0] & 16) != 0;
  options.whole = (data[0] & 32) != 0;
  options.keep_bad = (data[0] & 64) != 0;
  options.keys = {"a", "label"};
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t columns = 1 + data[1] % 3;
  const std::string whole = read(options, bytes, 0, columns);
  for (const size_t block : {size_t{1}, size_t{2}, 3 + static_cast<size_t>(data[1]) / 3}) {
    require(read(options, bytes, block, columns) == whole, "blocks of another size give something else");
  }
  for (const char delimiter : {',', '\t'}) {
    QuoteScan once(delimiter), often(delimiter);
    once.feed(bytes);
    for (const char& c : bytes) often.feed({&c, 1});
    require(once.consistent() == often.consistent(), "quotes");
    require(!once.consistent() || once.ambiguous_line() == often.ambiguous_line(), "ambiguous line");
  }
  return 0;
}

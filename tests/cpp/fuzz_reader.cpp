// libFuzzer target: any bytes as a file, read in every way; each error must be one that the reader means.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <system_error>

#include "encode.h"
#include "reader.h"
#include "word_tokenizer.h"

using namespace bertnli;

static void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const WordTokenizer tokenizer({{"<unk>", 0}, {"<pad>", 1}, {"<cls>", 2}, {"<sep>", 3}, {"a", 4}, {"dog", 5}},
                                       {1, 2, 3, 0});
  if (size < 1) return 0;
  static const int fd = memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  require(ftruncate(fd, 0) == 0, "ftruncate");
  require(pwrite(fd, data + 1, size - 1, 0) == static_cast<ssize_t>(size - 1), "pwrite");
  const auto other_label = [](std::string_view text, bool json) -> Label {
    if (text.size() > 9) return {-1, "unknown label"};
    return {json ? static_cast<int64_t>(text.size()) - 5 : -1, {}};
  };
  ReadOptions read{(data[0] & 1) != 0, (data[0] & 2) != 0, {"entailment", "neutral"}, other_label, 1 + data[0] % 3};
  RowOptions rows{tokenizer, 3 + static_cast<size_t>(data[0] >> 4), Truncation::kLongestFirst, read.parse};
  std::string errors[2];
  PairTable table;
  EncodedFile file;
  try {
    table = read_pairs(path, read);
  } catch (const FormatError& e) {
    errors[0] = e.what();
  }
  try {
    file = encode_file(path, read, rows);
  } catch (const FormatError& e) {
    errors[1] = e.what();
  }
  require(errors[0] == errors[1], "the two ways find different errors");
  if (!errors[0].empty()) return 0;
  // Reading first and encoding then gives the same rows.
  require(table.labels.size() == file.labels.size() && table.found.dropped == file.found.dropped &&
              table.found.has_quotes == file.found.has_quotes,
          "rows");
  const size_t n = table.labels.size();
  const char *base = table.arena.data(), *readable = base + table.arena.size();
  const Texts first{n, nullptr, base, readable, table.premises.starts.data(), table.premises.ends.data()};
  const Texts second{n, nullptr, base, readable, table.hypotheses.starts.data(), table.hypotheses.ends.data()};
  std::vector<int64_t> offsets(n + 1);
  std::vector<int32_t> first_lens(n);
  const Job job{tokenizer, first, &second, rows.max_len, rows.rule, 1, {"premises", "hypotheses"}};
  const IdBuffer ids = encode_ragged(job, offsets.data(), first_lens.data());
  require(ids.size() == file.ids.size() && std::equal(ids.data(), ids.data() + ids.size(), file.ids.data()), "ids");
  require(std::equal(first_lens.begin(), first_lens.end(), file.first_lens.data()), "first_lens");
  return 0;
}

// Tests of the text stage; tests/cpp/run.sh builds and runs them. Here: files, truncation, rows and batches.
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>

#include "buffers.h"
#include "check.h"
#include "encode.h"
#include "gather.h"
#include "json.h"
#include "text_file.h"
#include "tsv.h"
#include "word_tokenizer.h"
#include "wordpiece_tokenizer.h"

using namespace bertnli;

namespace {

void truncation_equals_popping() {
  for (size_t budget = 0; budget < 12; ++budget) {
    for (size_t p = 0; p < 15; ++p) {
      for (size_t h = 0; h < 15; ++h) {
        size_t a = p, b = h;
        while (a + b > budget) a > b ? --a : --b;
        PairLengths kept;
        CHECK(truncate_pair(Truncation::kLongestFirst, p, h, budget, kept));
        CHECK(kept.first == a && kept.second == b);
        const bool fits = p + h <= budget;
        CHECK(truncate_pair(Truncation::kOnlyFirst, p, h, budget, kept) == (fits || h <= budget));
        CHECK(truncate_pair(Truncation::kOnlySecond, p, h, budget, kept) == (fits || p <= budget));
        CHECK(truncate_pair(Truncation::kRatio, p, h, budget, kept));
        CHECK(kept.first <= p && kept.second <= h && kept.first + kept.second == std::min(budget, p + h));
      }
    }
  }
}

// Ragged rows gathered into padded ones, in small and large results and of widths for AVX-512.
void padded_equals_ragged() {
  const WordTokenizer tokenizer(pieces(), {5, 2, 3, 1});  // (a pad id other than 0)
  std::vector<std::string> texts[2];
  constexpr size_t kMost = 25'000;
  for (size_t i = 0; i < kMost; ++i) {
    for (auto& side : texts) side.push_back(random_text("ab ", 40));
    if (i % 3 == 0 && i > 0) texts[0][i] = texts[0][i - 1];
  }
  std::vector<std::string_view> views[2];
  for (int k = 0; k < 2; ++k) views[k].assign(texts[k].begin(), texts[k].end());
  for (const size_t max_len : {13, 14, 16}) {
    for (const auto& [n, threads] : {std::pair(kMost, 1), {kMost, 4}, {kMost / 5, 1}}) {
      const Texts first{n, views[0].data(), nullptr, nullptr, nullptr, nullptr};
      const Texts second{n, views[1].data(), nullptr, nullptr, nullptr, nullptr};
      std::vector<int64_t> offsets(n + 1), lens(n);
      std::vector<int32_t> first_lens(n);
      const Job job{tokenizer, first, &second, max_len, Truncation::kLongestFirst, threads, {"a", "b"}};
      const IdBuffer ragged = encode_ragged(job, offsets.data(), first_lens.data());
      const SequenceStore store{ragged.data(), offsets.data(), first_lens.data(), ragged.size(), n};
      Buffer *ids = take_buffer(n * max_len * 8), *segments = take_buffer(n * max_len * 8);  // (aligned to cache lines)
      auto *to_ids = static_cast<int64_t*>(ids->data), *to_segments = static_cast<int64_t*>(segments->data);
      gather_padded(select_sequences(store, nullptr, n), max_len, 5, to_ids, to_segments, lens.data());
      for (size_t i = 0; i < n; ++i) {
        const auto length = static_cast<size_t>(offsets[i + 1] - offsets[i]);
        CHECK(lens[i] == static_cast<int64_t>(length));
        for (size_t k = 0; k < max_len; ++k) {
          CHECK(to_ids[i * max_len + k] == (k < length ? ragged.data()[offsets[i] + static_cast<int64_t>(k)] : 5));
          CHECK(to_segments[i * max_len + k] == (k >= static_cast<size_t>(first_lens[i]) && k < length));
        }
      }
      give_buffer(ids);
      give_buffer(segments);
    }
  }
}

void corrupt_stores_are_refused() {
  const std::vector<int32_t> ids{1, 2, 3, 4};
  const std::vector<int64_t> index{1};
  for (const std::vector<int64_t>& offsets : {std::vector<int64_t>{0, 2, 4}, {0, -1, 4}, {0, 3, 2}, {0, 2, 5}}) {
    const std::vector<int32_t> first_lens{1, 2};
    const bool intact = offsets[1] == 2 && offsets[2] == 4;
    try {
      const SequenceStore store{ids.data(), offsets.data(), first_lens.data(), ids.size(), 2};
      CHECK(select_sequences(store, index.data(), 1)[0].length == 2 && intact);
    } catch (const std::invalid_argument&) {
      CHECK(!intact);
    }
  }
}

void tsv_equals_splitting() {
  for (int round = 0; round < 20'000; ++round) {
    const Exact file(random_text("ab\t\t\n\r\xC3", 200));
    std::vector<std::vector<std::string>> wanted;
    std::vector<std::string> line{""};
    for (const char c : file.view()) {
      if (c == '\n' || c == '\r') {
        wanted.push_back(line);
        line = {""};
      } else if (c == '\t') {
        line.emplace_back();
      } else {
        line.back() += c;
      }
    }
    if (line != std::vector<std::string>{""}) wanted.push_back(line);
    const size_t known = 1 + below(5);
    TsvScanner lines(file.begin(), file.end(), known);
    for (const auto& fields : wanted) {
      CHECK(lines.next());
      CHECK(lines.fields() == fields.size());
      bool ascii = true;
      for (size_t i = 0; i < fields.size(); ++i) {
        if (i < known) CHECK(lines.field(i) == fields[i]);
        ascii &= fields[i].find('\xC3') == std::string::npos;
      }
      CHECK(lines.ascii() == ascii);
    }
    CHECK(!lines.next());
  }
}

void lines_equal_splitting() {
  for (int round = 0; round < 20'000; ++round) {
    const Exact file(random_text("ab\n\r", 40));
    std::vector<std::string> wanted;
    std::string line;
    const std::string_view s = file.view();
    for (size_t i = 0; i < s.size(); ++i) {
      if (s[i] != '\n' && s[i] != '\r') {
        line += s[i];
        continue;
      }
      if (s[i] == '\r' && i + 1 < s.size() && s[i + 1] == '\n') ++i;
      wanted.push_back(line);
      line.clear();
    }
    if (!line.empty()) wanted.push_back(line);
    Lines lines(file.begin(), file.end());
    std::string_view found;
    for (const std::string& w : wanted) CHECK(lines.next(found) && found == w);
    CHECK(!lines.next(found));
  }
}

void windows_are_the_file() {
  const auto place = std::filesystem::temp_directory_path() / ("windows." + std::to_string(std::random_device{}()));
  const std::string path = place.string();
  const auto write = [&](std::string_view text) { CHECK(std::ofstream(place, std::ios::binary) << text); };
  for (int round = 0; round < 4000; ++round) {
    const std::string text = random_text(round % 2 == 0 ? "ab\n\r" : "abcdefgh\n\r", 60);
    write(text);
    const TextFile file(path);
    CHECK(file.size() == text.size());
    Windows windows(file, 0, file.size(), 1 + below(9));
    std::string all;
    std::string_view lines;
    while (windows.next(lines)) {
      CHECK(!lines.empty() && windows.offset() == all.size());
      all += lines;
      const bool between =
          all.size() == text.size() || all.back() == '\n' || (all.back() == '\r' && text[all.size()] != '\n');
      CHECK(between);
    }
    CHECK(all == text);
    Lines by_line(text.data(), text.data() + text.size());
    std::string_view line;
    size_t at = 0, number = 0;
    while (by_line.next(line)) {
      ++number;
      CHECK(line.empty() || file.line_number(static_cast<size_t>(line.data() - text.data())) == number);
      CHECK(file.line(at) == line && at == static_cast<size_t>(by_line.p - text.data()));
    }
    const size_t begin = below(text.size() + 1), newline = text.find('\n', begin);
    CHECK(file.behind_newline(begin) == (newline == text.npos ? text.size() : newline + 1));
    CHECK(file.has_only_line_ends(begin) == (text.find_first_not_of("\r\n", begin) == text.npos));
  }
  write("abc");
  std::optional<TextFile> opened(path);
  const TextFile& file = *opened;
  write("a");
  for (const bool reads : {true, false}) {
    try {
      char to[3];
      reads ? file.read(0, to, 3) : file.check_unchanged();
      CHECK(false);
    } catch (const FormatError& e) {
      CHECK(std::string_view(e.what()).find("the file changed while it was read") != std::string_view::npos);
    }
  }
  opened.reset();  // Windows removes no open file
  std::filesystem::remove(place);
}

void threads_share_a_tokenizer() {
  const WordPieceTokenizer tokenizer(pieces(), {0, 2, 3, 1}, {}, true);
  std::vector<std::string> texts;
  for (int i = 0; i < 2000; ++i) texts.push_back(random_text("abe  ", 80));
  std::vector<std::string_view> views(texts.begin(), texts.end());
  const Texts all{views.size(), views.data(), nullptr, nullptr, nullptr, nullptr};
  std::vector<std::vector<int32_t>> results(6);
  std::vector<std::thread> callers;
  for (auto& result : results) {
    callers.emplace_back([&] {
      for (int round = 0; round < 3; ++round) {
        std::vector<int64_t> offsets(views.size() + 1);
        std::vector<int32_t> first_lens(views.size());
        const Job job{tokenizer, all, &all, 20, Truncation::kLongestFirst, 3, {"a", "b"}};
        result = list(encode_ragged(job, offsets.data(), first_lens.data()));
      }
    });
  }
  for (auto& t : callers) t.join();
  for (const auto& r : results) CHECK(r == results[0] && !r.empty());
}

}  // namespace

int main() {
  test_structures();
  test_tokenizers();
  truncation_equals_popping();
  padded_equals_ragged();
  corrupt_stores_are_refused();
  tsv_equals_splitting();
  lines_equal_splitting();
  windows_are_the_file();
  threads_share_a_tokenizer();
  std::puts("all parts hold");
  return 0;
}

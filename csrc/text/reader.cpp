#include "reader.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "json.h"
#include "parallel.h"
#include "parse.h"
#include "text_file.h"
#include "tsv.h"
#include "unicode.h"
#include "word_cache.h"

namespace bertnli {
namespace {

std::vector<std::string_view> split_tabs(std::string_view line) {
  std::vector<std::string_view> fields;
  for (size_t at = 0;;) {
    const size_t tab = line.find('\t', at);
    fields.push_back(line.substr(at, tab == line.npos ? tab : tab - at));
    if (tab == line.npos) return fields;
    at = tab + 1;
  }
}

// The rows of a part of the file as they are read.
struct Part {
  explicit Part(PairSink* sink) : sink(*sink) {}
  PairSink& sink;
  RowsFound found;
  std::array<std::vector<std::pair<std::string, int64_t>>, 2> labels;  // answers of other_label(text, json) by json
};

class PairParser {
 public:
  explicit PairParser(const ReadOptions& options) : options_(options) {
    for (const std::string& name : options.label_names) {
      const bool fits = !name.empty() && name.size() <= ChunkKey::kMaxSize;
      label_keys_.push_back(fits ? ChunkKey::of(name) : ChunkKey());
    }
  }

  // The columns of a tab-separated file, by its header.
  void read_header(std::string_view header) {
    const auto fields = split_tabs(header);
    columns_ = fields.size();
    const auto find = [&](std::initializer_list<std::string_view> names) -> size_t {
      for (const auto name : names) {
        const auto it = std::find(fields.begin(), fields.end(), name);
        if (it != fields.end()) return static_cast<size_t>(it - fields.begin());
      }
      std::string wanted, found;
      for (const auto name : names) wanted += (wanted.empty() ? "'" : " or '") + std::string(name) + "'";
      for (const auto f : fields) found += (found.empty() ? "" : ", ") + shortened(f);
      const std::string hint =
          options_.parse && wanted.find("parse") != wanted.npos
              ? "; use columns=\"text\" for a file without parses"
              : "; for a .csv, or a table with other columns, name them: --text-columns, text_columns";
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
  }

  void tsv_rows(const char* begin, const char* end, const char* readable, Part& part) const {
    TsvScanner lines(begin, end, last_ + 1);
    while (lines.next()) {
      const std::string_view line = lines.line();
      if (line.empty()) continue;
      if (!lines.ascii()) check_utf8(line);
      const size_t found = lines.fields();
      if (found != columns_) {
        throw ErrorAt{line.data(), "expected " + std::to_string(columns_) + " tab-separated columns, found " +
                                       std::to_string(found)};
      }
      int64_t label;
      const std::string_view name = lines.field(label_);
      const std::string_view premise = lines.field(premise_), hypothesis = lines.field(hypothesis_);
      if (name.starts_with('"') || premise.starts_with('"') || hypothesis.starts_with('"'))
        part.found.has_quotes = true;
      if (!known_label(name, readable, label) && !find_label(name, false, line.data(), part, label)) continue;
      put(part.sink, line, label, premise, hypothesis, readable);
    }
  }

  void json_rows(const char* begin, const char* end, Part& part) const {
    Lines lines(begin, end);
    std::string_view line;
    Json json;
    while (lines.next(line)) json_row(line, json, part);
  }

 private:
  void json_row(std::string_view line, Json& json, Part& part) const;
  static void put(PairSink& sink, std::string_view line, int64_t label, std::string_view premise,
                  std::string_view hypothesis, const char* readable) {
    try {
      sink.row(label, premise, hypothesis, readable);
    } catch (const RowError& e) {
      throw ErrorAt{line.data(), e.message};
    }
  }
  // The index of a label name, compared without branches, which would be mispredicted. False for other names, which
  // find_label() handles.
  bool known_label(std::string_view name, const char* readable, int64_t& id) const {
    if (name.size() - 1 >= ChunkKey::kMaxSize || readable - name.data() < 16) return false;
    const ChunkKey key = ChunkKey::of(Bytes16::load(name.data()), name.size());
    id = -1;
    for (size_t i = label_keys_.size(); i-- > 0;) {
      const bool other = ((label_keys_[i].lo ^ key.lo) | (label_keys_[i].hi ^ key.hi)) != 0;
      id = other ? id : static_cast<int64_t>(i);
    }
    return id >= 0;
  }
  // False if the row is dropped. `json` is whether the label is a JSON value other than a string.
  bool find_label(std::string_view name, bool json, const char* where, Part& part, int64_t& id) const {
    const auto& names = options_.label_names;
    auto& seen = part.labels[json];
    const auto known = std::find(names.begin(), names.end(), name);
    const auto again = std::find_if(seen.begin(), seen.end(), [&](const auto& label) { return label.first == name; });
    if (!json && known != names.end()) {
      id = known - names.begin();
    } else if (again != seen.end()) {
      id = again->second;
    } else {
      constexpr size_t kMostSeen = 64;
      const Label label = options_.other_label(name, json);
      if (!label.error.empty()) throw ErrorAt{where, label.error};
      id = label.id;
      if (seen.size() < kMostSeen) seen.emplace_back(name, id);
    }
    part.found.dropped += id < 0;
    return id >= 0;
  }

  const ReadOptions& options_;
  std::vector<ChunkKey> label_keys_;  // of each name, empty for names that are too long
  size_t columns_ = 0, label_ = 0, premise_ = 0, hypothesis_ = 0, last_ = 0;
};

void PairParser::json_row(std::string_view line, Json& json, Part& part) const {
  check_utf8(line);
  json.reset(line);
  json.space();
  if (json.done()) return;
  struct Name {
    std::string text;
    bool json;
  };
  std::optional<Name> gold, label;
  std::optional<std::string> first, second, other_first, other_second;
  const auto text = [&](std::optional<std::string>& to) {
    json.space();
    if (!json.at('"')) json.fail("expected a string for '" + json.key + "'");
    to.emplace();
    json.string(&*to);
  };
  const auto name = [&](std::optional<Name>& to) {
    json.space();
    if (json.at('{') || json.at('[')) json.fail("expected a string, a number or null for '" + json.key + "'");
    to = {"", !json.at('"')};
    if (to->json) {
      to->text = json.scalar();
    } else {
      json.string(&to->text);
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
  int64_t id;
  if (find_label(which->text, which->json, line.data(), part, id)) {
    put(part.sink, line, id, *premise, *hypothesis, nullptr);
  }
}

// Calls work(), and names file and line of an ErrorAt; `text` is the file's from `offset` on, from the begin of a line.
template <class Work>
void naming_place(const TextFile& file, size_t offset, std::string_view text, const Work& work) {
  try {
    work();
  } catch (const ErrorAt& e) {
    const auto at = static_cast<size_t>(e.where - text.data());
    std::string place = file.path() + ":" + std::to_string(file.line_number(offset + at));
    if (e.with_column()) {
      const std::string_view before = text.substr(0, at), line = before.substr(before.find_last_of("\r\n") + 1);
      place += ":" + std::to_string(count_characters(line.data(), line.data() + line.size()) + 1);
    }
    const bool bad_byte = e.kind == ErrorAt::Kind::kUtf8;
    throw FormatError(place + ": " + (bad_byte ? not_utf8(*e.where, offset + at) : e.message));
  }
}

// Collects the texts of a part of the file.
struct ArenaSink final : PairSink {
  explicit ArenaSink(bool parse) : parse(parse) {}
  void row(int64_t label, std::string_view premise, std::string_view hypothesis, const char*) override {
    labels.push_back(label);
    for (const std::string_view text : {premise, hypothesis}) {
      bounds.push_back(static_cast<int64_t>(arena.size()));
      if (parse) {
        extract_text(text, arena);
      } else {
        arena.append(text);
      }
      bounds.push_back(static_cast<int64_t>(arena.size()));
    }
  }
  void release(size_t) override {}
  const bool parse;
  std::string arena;
  std::vector<int64_t> bounds;  // premise start, end, hypothesis start, end of each row
  std::vector<int64_t> labels;
};

}  // namespace

RowsFound read_rows(const std::string& path, const ReadOptions& options,
                    const std::function<std::vector<PairSink*>(size_t, size_t)>& make_sinks) {
  const TextFile file(path);
  try {
    PairParser parser(options);
    size_t begin = file.behind_bom();
    if (file.has_only_line_ends(begin)) throw FormatError(path + ":1: the file is empty");
    if (!options.json_lines) {
      const std::string header = file.line(begin);
      naming_place(file, 0, header, [&] {
        if (find_invalid_utf8(header) != header.npos) throw ErrorAt{header.data(), "expected a header in UTF-8"};
        parser.read_header(header);
      });
    }
    constexpr size_t kBytesAThread = size_t{1} << 18;
    const size_t size = file.size() - begin;
    const size_t parts = std::clamp<size_t>(size / kBytesAThread, 1, static_cast<size_t>(std::max(options.threads, 1)));
    std::vector<size_t> cuts{begin};
    for (size_t i = 1; i < parts; ++i) {
      cuts.push_back(file.behind_newline(std::max(begin + size * i / parts, cuts.back())));
    }
    cuts.push_back(file.size());
    const std::vector<PairSink*> sinks = make_sinks(parts, size / parts);
    std::vector<Part> read(sinks.begin(), sinks.end());
    run_parts(parts, [&](size_t i) {
      Windows windows(file, cuts[i], cuts[i + 1]);
      std::string_view lines;
      while (windows.next(lines)) {
        const char *from = lines.data(), *to = from + lines.size();
        naming_place(file, windows.offset(), lines, [&] {
          if (options.json_lines) {
            parser.json_rows(from, to, read[i]);
          } else {
            parser.tsv_rows(from, to, to, read[i]);
          }
        });
        sinks[i]->release(lines.size());
      }
    });
    file.check_unchanged();
    RowsFound all;
    for (const Part& part : read) {
      all.dropped += part.found.dropped;
      all.has_quotes |= part.found.has_quotes;
    }
    return all;
  } catch (const FormatError&) {
    file.check_unchanged();  // a better reason
    throw;
  }
}

PairTable read_pairs(const std::string& path, const ReadOptions& options) {
  std::vector<std::unique_ptr<ArenaSink>> done;
  PairTable table;
  table.found = read_rows(path, options, [&](size_t parts, size_t) {
    std::vector<PairSink*> sinks;
    for (size_t i = 0; i < parts; ++i) {
      done.push_back(std::make_unique<ArenaSink>(options.parse));
      sinks.push_back(done.back().get());
    }
    return sinks;
  });
  size_t bytes = 0, rows = 0;
  for (const auto& part : done) bytes += part->arena.size(), rows += part->labels.size();
  table.arena = std::move(done[0]->arena);
  table.arena.reserve(bytes);
  for (auto* v : {&table.premises.starts, &table.premises.ends, &table.hypotheses.starts, &table.hypotheses.ends,
                  &table.labels}) {
    v->reserve(rows);
  }
  for (size_t i = 0; i < done.size(); ++i) {
    const ArenaSink& part = *done[i];
    const auto shift = i == 0 ? 0 : static_cast<int64_t>(table.arena.size());
    if (i != 0) table.arena += part.arena;
    for (size_t k = 0; k < part.bounds.size(); k += 4) {
      table.premises.starts.push_back(part.bounds[k] + shift);
      table.premises.ends.push_back(part.bounds[k + 1] + shift);
      table.hypotheses.starts.push_back(part.bounds[k + 2] + shift);
      table.hypotheses.ends.push_back(part.bounds[k + 3] + shift);
    }
    table.labels.insert(table.labels.end(), part.labels.begin(), part.labels.end());
  }
  return table;
}

}  // namespace bertnli

#include "table.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <unordered_map>
#include <utility>

#include "blocks.h"
#include "text_file.h"
#include "unicode.h"

namespace bertnli {
namespace {

// The first byte that ends an unquoted field, or `end`.
const char* find_field_end(const char* p, const char* end, char delimiter) {
  for (; end - p >= 16; p += 16) {
    const Lane v(p);
    const uint64_t marks = v.equal(delimiter) | v.equal('\n') | v.equal('\r');
    if (marks != 0) return p + std::countr_zero(marks);
  }
  while (p < end && *p != delimiter && *p != '\n' && *p != '\r') ++p;
  return p;
}

const char* find_line_end(const char* p, const char* end) {
  while (p < end && *p != '\n' && *p != '\r') ++p;
  return p;
}

size_t count_line_ends(const char* p, const char* end) {
  size_t lines = 0;
  for (; (p = find_line_end(p, end)) < end; ++p) lines += *p == '\n' ? 1 : p + 1 == end || p[1] != '\n';
  return lines;
}

std::string in_quotes(std::string_view text) { return "'" + std::string(text) + "'"; }

}  // namespace

std::string TableReader::Field::text() const {
  std::string result;
  for (const char* p = begin; p < end; ++p) {
    result.push_back(*p);
    if (doubled && *p == '"') ++p;
  }
  return result;
}

void TableReader::fail(const Problem& problem) const {
  throw FormatError(options_.name + ":" + std::to_string(problem.line) + ": " + problem.message);
}

template <class Work>
void TableReader::guarded(std::string_view row, const Work& work) {
  try {
    work();
  } catch (const Problem& problem) {
    if (!options_.keep_bad) fail(problem);
    rows_.bad.push_back({static_cast<int64_t>(problem.line), problem.message, std::string(row)});
  }
}

void TableReader::choose(std::vector<size_t> columns) {
  columns_ = std::move(columns);
  retry_ = 0;
}

void TableReader::feed(std::string_view block, bool last) {
  const bool joined = !pending_.empty();
  if (joined) {
    pending_.append(block);
    block = pending_;
  }
  const char *const begin = block.data(), *const end = begin + block.size(), *p = begin;
  if (last || block.size() >= retry_) {
    p = parse(begin, end, last);
    offset_ += static_cast<size_t>(p - begin);
    retry_ = 2 * static_cast<size_t>(end - p);  // so that a row of many blocks takes linear time
  }
  if (joined) {
    pending_.erase(0, static_cast<size_t>(p - begin));
  } else {
    pending_.assign(p, end);
  }
}

const char* TableReader::parse(const char* p, const char* end, bool last) {
  switch (options_.format) {
    case TableOptions::Format::kDelimited:
      return parse_delimited(p, end, last);
    case TableOptions::Format::kJsonLines:
      return parse_json_lines(p, end, last);
    default:
      return parse_json_array(p, end, last);
  }
}

// The line of an error in text that begins at a line's begin, and what to say.
TableReader::Problem TableReader::problem_of(const ErrorAt& e, std::string_view text,
                                             const std::string& expected) const {
  const size_t line = lines_ + 1 + count_line_ends(text.data(), e.where);
  const auto at = static_cast<size_t>(e.where - text.data());
  if (e.kind == ErrorAt::Kind::kUtf8) return {line, not_utf8(*e.where, offset_ + at)};
  if (!e.with_column()) return {line, e.message};
  const size_t end = text.substr(0, at).find_last_of("\r\n");
  const char* from = text.data() + (end == text.npos ? 0 : end + 1);
  const bool syntax = e.kind == ErrorAt::Kind::kSyntax;
  const size_t column = (end == text.npos ? column_ : 0) + count_characters(from, e.where) + 1;
  return {line, (syntax ? "not JSON: " : "") + e.message + " at column " + std::to_string(column) +
                    (syntax ? "; expected " + expected : "")};
}

// ---- delimited text -------------------------------------------------------------------------------------------------

const char* TableReader::parse_delimited(const char* p, const char* end, bool last) {
  const size_t offset = offset_;
  const char* const begin = p;
  while (p < end && (columns_ || (options_.header && !header_))) {
    std::optional<Problem> problem;
    const char* next = split(p, end, last, problem);
    if (next == nullptr) break;
    const std::string_view row(p, static_cast<size_t>(next - p));
    offset_ = offset + static_cast<size_t>(p - begin);
    const size_t line = lines_ + inner_lines_ + 1;
    const bool is_header = options_.header && !header_;
    const bool empty = fields_.size() == 1 && !fields_[0].quoted && fields_[0].begin == fields_[0].end;
    const auto read = [&] {
      try {
        check_utf8(row);
      } catch (const ErrorAt& e) {
        throw problem_of(e, row, {});
      }
      if (problem) throw *problem;
      if (is_header) {
        header_.emplace();
        for (const Field& f : fields_)
          if (!empty) header_->push_back(f.text());
        width_ = header_->size();
      } else if (!empty) {
        add_fields(row, line);
      } else if (empty_line_ == 0) {
        empty_line_ = line;
      }
    };
    if (is_header) {
      try {
        read();
      } catch (const Problem& broken) {
        fail(broken);
      }
    } else {
      guarded(row, read);
    }
    lines_ = line;
    p = next;
  }
  if (last && options_.header && !header_) header_.emplace();
  offset_ = offset;
  return p;
}

// The fields of the row at p. Returns where the next row begins; null if this one may go on behind `end`.
const char* TableReader::split(const char* p, const char* end, bool last, std::optional<Problem>& problem) {
  fields_.clear();
  inner_lines_ = 0;
  for (;;) {
    Field field{p, p, options_.quotes && p < end && *p == '"', false};
    if (!field.quoted) {
      field.end = p = find_field_end(p, end, options_.delimiter);
    } else {
      field.begin = ++p;
      for (;;) {
        const void* found = std::memchr(p, '"', static_cast<size_t>(end - p));
        const char* quote = found == nullptr ? end : static_cast<const char*>(found);
        if (!last && end - quote < 2) return nullptr;  // perhaps the first of two
        p = field.end = quote;
        if (quote == end) {
          problem = Problem{lines_ + inner_lines_ + 1,
                            "unexpected end of data: the field that begins with a quote on this line has no closing "
                            "quote"};
          break;
        }
        ++p;
        if (p == end || *p != '"') break;
        field.doubled = true;
        ++p;
      }
      inner_lines_ += count_line_ends(field.begin, field.end);
      if (!problem && p < end && *p != options_.delimiter && *p != '\n' && *p != '\r') {
        problem = Problem{lines_ + inner_lines_ + 1, in_quotes({&options_.delimiter, 1}) +
                                                         " expected after '\"'; double a quote that is a character"};
        p = find_line_end(p, end);
      }
    }
    fields_.push_back(field);
    if (p == end) return last ? end : nullptr;
    if (*p == options_.delimiter) {
      ++p;
      continue;
    }
    if (*p == '\r') {
      if (p + 1 == end && !last) return nullptr;
      if (p + 1 < end && p[1] == '\n') ++p;
    }
    return p + 1;
  }
}

void TableReader::check_width(size_t line) {
  if (width_ == 1 && empty_line_ != 0) {
    throw Problem{empty_line_, "the line is empty; write an empty text as \"\" in a .csv file"};
  }
  const size_t found = fields_.size();
  if (width_ == 0) width_ = found;
  if (found != width_) {
    throw Problem{line, "expected " + std::to_string(width_) + " columns, as in the first row; found " +
                            std::to_string(found) +
                            (options_.delimiter == ',' ? "; quote a text that contains a comma" : "")};
  }
  const size_t most = columns_->empty() ? 0 : *std::max_element(columns_->begin(), columns_->end()) + 1;
  if (most > width_) {
    throw Problem{line, "expected " + std::to_string(most) + " columns or more, found " + std::to_string(width_)};
  }
}

void TableReader::add_fields(std::string_view row, size_t line) {
  check_width(line);
  if (header_ && row.starts_with(fields_[0].quoted ? "\"" : header_->front()) &&
      std::equal(fields_.begin(), fields_.end(), header_->begin(),
                 [](const Field& f, const std::string& name) { return f.text() == name; })) {
    throw Problem{line, "the header is repeated; remove this line"};
  }
  for (const size_t column : *columns_) {
    const Field& f = fields_[column];
    if (f.doubled) {
      rows_.values.arena.append(f.text());
    } else {
      rows_.values.arena.append({f.begin, static_cast<size_t>(f.end - f.begin)});
    }
    rows_.values.end_value();
  }
  rows_.lines.push(static_cast<int64_t>(line));
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

// The object at json_.p: the texts of its keys.
void TableReader::read_object() {
  texts_.resize(options_.keys.size());
  found_.assign(options_.keys.size(), std::nullopt);
  json_.members([this] {
    const auto key = std::find(options_.keys.begin(), options_.keys.end(), json_.key);
    if (key == options_.keys.end()) return json_.skip_value();
    const auto i = static_cast<size_t>(key - options_.keys.begin());
    texts_[i].clear();
    json_.space();
    const char* from = json_.p;
    if (json_.at('"')) {
      found_[i] = Value::kText;
      return json_.string(&texts_[i]);
    }
    json_.skip_value();
    texts_[i].assign(from, json_.p);
    found_[i] = texts_[i] == "null" ? Value::kNull : Value::kOther;
  });
}

// Adds the row of the object that read_object() read, whose text this is.
void TableReader::add_object(std::string_view text, size_t line) {
  for (size_t i = 0; i < found_.size(); ++i) {
    if (found_[i]) continue;
    std::string present;
    json_.reset(text);
    json_.members([&] {
      present += (present.empty() ? "" : ", ") + in_quotes(json_.key);
      json_.skip_value();
    });
    throw Problem{line, "there is no column " + in_quotes(options_.keys[i]) + "; the columns are " + present};
  }
  for (size_t i = 0; i < found_.size(); ++i) {
    rows_.values.arena.append(texts_[i]);
    rows_.values.end_value();
    rows_.values.kinds.push(*found_[i]);
  }
  if (options_.whole) {
    rows_.values.arena.append(text);
    rows_.values.end_value();
    rows_.values.kinds.push(Value::kOther);
  }
  rows_.lines.push(static_cast<int64_t>(line));
}

const char* TableReader::parse_json_lines(const char* p, const char* end, bool last) {
  const size_t offset = offset_;
  const char* const stop = last ? end : p + last_line_end(p, static_cast<size_t>(end - p));
  Lines lines(p, stop);
  std::string_view line;
  while (lines.next(line)) {
    offset_ = offset + static_cast<size_t>(line.data() - p);
    guarded(line, [&] {
      try {
        check_utf8(line);
        json_.reset(line);
        json_.space();
        if (json_.done()) return;
        const char* from = json_.p;
        if (!json_.at('{')) {
          json_.skip_value();
          throw ErrorAt{from, "expected a JSON object, as JSON lines have one a line; found " + shortened(line)};
        }
        read_object();
        const std::string_view object(from, static_cast<size_t>(json_.p - from));
        json_.space();
        if (!json_.done()) json_.fail("expected the line's end behind the object");
        add_object(object, lines_ + 1);
      } catch (const ErrorAt& e) {
        throw problem_of(e, line, "JSON lines (one object a line)");
      }
    });
    ++lines_;
  }
  offset_ = offset;
  return stop;
}

const char* TableReader::parse_json_array(const char* p, const char* end, bool last) {
  const std::string_view block(p, static_cast<size_t>(end - p));
  const size_t lines = lines_;
  const char *read = p, *counted = p;
  const auto line_of = [&](const char* at) {
    lines_ += count_line_ends(counted, at);
    counted = at;
    return lines_ + 1;
  };
  try {
    if (last) check_utf8(block);
    json_.reset(block);
    for (;; read = json_.p) {
      json_.space();
      if (json_.done() && (!last || array_ == Array::kEnd)) break;
      if (array_ == Array::kBegin) {
        json_.expect('[', "an array of objects");
        array_ = Array::kFirst;
      } else if (array_ == Array::kEnd) {
        json_.fail("expected the file's end behind the array");
      } else if (array_ == Array::kBehind || (array_ == Array::kFirst && json_.at(']'))) {
        const bool more = !json_.at(']');
        json_.expect(more ? ',' : ']', "',' or ']'");
        array_ = more ? Array::kObject : Array::kEnd;
      } else {
        const char* from = json_.p;
        read_object();
        const char* behind = json_.p;
        const std::string_view text(from, static_cast<size_t>(behind - from));
        if (!last) check_utf8(text);
        guarded(text, [&] { add_object(text, line_of(from)); });
        json_.reset({behind, static_cast<size_t>(end - behind)});
        array_ = Array::kBehind;
      }
    }
  } catch (const ErrorAt& e) {
    if (last) {  // else the object may go on
      lines_ = lines;
      fail(problem_of(e, block, "an array of objects"));
    }
  } catch (const Problem& problem) {
    fail(problem);
  }
  lines_ += count_line_ends(counted, read);
  const char* line = lines_ == lines ? p : read;
  while (line > p && line[-1] != '\n' && line[-1] != '\r') --line;
  column_ = (lines_ == lines ? column_ : 0) + count_characters(line, read);
  return read;
}

// ---- quotes ---------------------------------------------------------------------------------------------------------

void QuoteScan::feed(std::string_view block) {
  for (const char c : block) {
    if (c == '"') {
      if (!inside_ && before_ != '"' && !is_end(before_)) consistent_ = false;
      any_ = true;
      inside_ = !inside_;
    } else if (inside_) {
      if (wide_ == 0 && is_end(c)) wide_ = line_;
    } else if (before_ == '"' && !is_end(c)) {
      consistent_ = false;
    }
    if (!consistent_) return;
    if (c == '\n' || c == '\r') {
      if (c == '\r' || before_ != '\r') ++line_;
      if (length_ != 0) {
        if (!counted_) first_count_ = delimiters_;
        equal_ &= first_count_ == delimiters_;
        counted_ = true;
      }
      delimiters_ = length_ = 0;
    } else {
      delimiters_ += c == delimiter_;
      ++length_;
    }
    before_ = c;
  }
}

// ---- distinct texts -------------------------------------------------------------------------------------------------

Distinct find_distinct(const char* base, const int64_t* starts, const int64_t* ends, const uint8_t* kinds, size_t n) {
  std::unordered_map<std::string_view, int64_t> known[3];  // by kind
  Distinct found;
  found.codes.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    const std::string_view text(base + starts[i], static_cast<size_t>(ends[i] - starts[i]));
    auto& same_kind = known[kinds == nullptr ? 0 : std::min<size_t>(kinds[i], 2)];
    const auto [at, is_new] = same_kind.try_emplace(text, static_cast<int64_t>(found.index.size()));
    if (is_new) found.index.push_back(static_cast<int64_t>(i));
    found.codes.push_back(at->second);
  }
  return found;
}

}  // namespace bertnli

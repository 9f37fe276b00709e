#include "arrow.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "unicode.h"

namespace bertnli {
namespace {

template <class T>
T load(const void* buffer, size_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(buffer) + i * sizeof(T), sizeof value);
  return value;
}

bool bit(const void* buffer, size_t i) { return (load<uint8_t>(buffer, i / 8) >> (i % 8) & 1) != 0; }

__extension__ using Int128 = __int128;
__extension__ using Uint128 = unsigned __int128;

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// utf8 and large_utf8: offsets of `Offset` into one block.
template <class Offset>
class Utf8Reader final : public ArrowReader {
  int64_t least_buffers() const override { return 3; }
  int64_t about_bytes(const ArrowArray& array, size_t begin, size_t end) const override {
    const auto first = load<Offset>(array.buffers[1], begin), last = load<Offset>(array.buffers[1], end);
    return first < 0 || last < first ? 0 : int64_t{last} - first;
  }
  void add_values(const ArrowArray& array, size_t begin, size_t end) override {
    const void* offsets = array.buffers[1];
    const Offset first = load<Offset>(offsets, begin);
    const auto shift = static_cast<int64_t>(values_.arena.size()) - first;
    Offset last = first;
    if (first < 0) throw ArrowError("an offset is negative");
    int64_t* bound = values_.bounds.room(end - begin);
    bool rise = true;
    for (size_t i = begin; i < end; ++i) {
      const Offset next = load<Offset>(offsets, i + 1);
      rise &= next >= last;
      last = next;
      *bound++ = static_cast<int64_t>(static_cast<uint64_t>(next) + static_cast<uint64_t>(shift));  // may wrap
    }
    if (!rise) throw ArrowError("the offsets do not rise");
    values_.bounds.advance(end - begin);
    if (last == first) return;
    if (array.buffers[2] == nullptr) throw ArrowError("the texts are missing");
    const std::string_view texts(static_cast<const char*>(array.buffers[2]) + first, static_cast<size_t>(last - first));
    if (may_borrow_) {
      borrowed_ = texts;
    } else {
      values_.arena.append(texts);
    }
  }
};

// utf8_view: 16 bytes a text, which hold it or say where it is.
class ViewReader final : public ArrowReader {
  int64_t least_buffers() const override { return 3; }
  int64_t about_bytes(const ArrowArray& array, size_t begin, size_t end) const override {
    int64_t total = 0;
    for (size_t i = begin; i < end; ++i) total += static_cast<uint32_t>(load<int32_t>(array.buffers[1], 4 * i));
    return total;
  }
  void add_values(const ArrowArray& array, size_t begin, size_t end) override {
    const auto blocks = static_cast<size_t>(array.n_buffers) - 3;
    const void* sizes = array.buffers[array.n_buffers - 1];
    for (size_t i = begin; i < end; ++i) {
      const char* view = static_cast<const char*>(array.buffers[1]) + 16 * i;
      const auto length = load<int32_t>(view, 0), block = load<int32_t>(view, 2), at = load<int32_t>(view, 3);
      const bool valid = array.buffers[0] == nullptr || bit(array.buffers[0], i);  // the view of a null is undefined
      if (valid && length < 0) throw ArrowError("a length is negative");
      if (valid && length <= 12) {
        values_.arena.append({view + 4, static_cast<size_t>(length)});
      } else if (valid) {
        if (block < 0 || static_cast<size_t>(block) >= blocks || sizes == nullptr || at < 0 ||
            int64_t{at} + length > load<int64_t>(sizes, static_cast<size_t>(block)) ||
            array.buffers[2 + block] == nullptr) {
          throw ArrowError("a text lies outside its buffer");
        }
        values_.arena.append({static_cast<const char*>(array.buffers[2 + block]) + at, static_cast<size_t>(length)});
      }
      values_.end_value();
    }
  }
};

struct Half {
  uint16_t bits;
};

double number_of(Half half) {
  const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  const double infinite = fraction == 0 ? HUGE_VAL : std::nan("");
  const double value = exponent == 31  ? infinite
                       : exponent == 0 ? std::ldexp(fraction, -24)
                                       : std::ldexp(fraction + 1024, exponent - 25);
  return half.bits >> 15 != 0 ? -value : value;
}

template <class T>
T number_of(T value) {
  return value;
}

template <class T>
class NumberReader final : public ArrowReader {
  int64_t least_buffers() const override { return 2; }
  Value kind() const override { return Value::kOther; }
  void add_values(const ArrowArray& array, size_t begin, size_t end) override {
    for (size_t i = begin; i < end; ++i) {
      const auto value = number_of(load<T>(array.buffers[1], i));
      if constexpr (std::is_floating_point_v<decltype(value + 0)>) {
        if (std::isnan(value)) {
          values_.kinds[values_.size()] = Value::kNull;
        } else if (std::isinf(value)) {
          values_.arena.append(value < 0 ? "-Infinity" : "Infinity");
        } else {
          write(static_cast<double>(value));
        }
      } else {
        write(value);
      }
      values_.end_value();
    }
  }
  template <class Number>
  void write(Number value) {
    constexpr size_t kMost = 32;
    char* to = values_.arena.room(kMost);
    values_.arena.advance(static_cast<size_t>(std::to_chars(to, to + kMost, value).ptr - to));
  }
};

// Decimals of so many bits: an integer, of whose digits `scale` are behind the point.
template <class T>
class DecimalReader final : public ArrowReader {
 public:
  explicit DecimalReader(size_t scale) : scale_(scale) {}

 private:
  int64_t least_buffers() const override { return 2; }
  Value kind() const override { return Value::kOther; }
  void add_values(const ArrowArray& array, size_t begin, size_t end) override {
    for (size_t i = begin; i < end; ++i) {
      const T value = load<T>(array.buffers[1], i);
      Uint128 rest = value < 0 ? -static_cast<Uint128>(value) : static_cast<Uint128>(value);
      std::string digits;  // the last one first
      while (rest != 0 || digits.size() <= scale_) {
        if (digits.size() == scale_ && scale_ != 0 && digits.find('.') == digits.npos) digits += '.';
        digits += static_cast<char>('0' + static_cast<int>(rest % 10));
        rest /= 10;
      }
      if (value < 0) digits += '-';
      std::reverse(digits.begin(), digits.end());
      values_.arena.append(digits);
      values_.end_value();
    }
  }

  const size_t scale_;
};

// A format is "d:precision,scale" or "d:precision,scale,bits". Null for negative scales and for 256 bits.
std::unique_ptr<ArrowReader> decimals(const std::string& format) {
  unsigned precision = 0, bits = 128;
  int scale = -1;
  if (std::sscanf(format.c_str(), "d:%u,%d,%u", &precision, &scale, &bits) < 2 || scale < 0 || scale > 38) {
    return nullptr;
  }
  const auto places = static_cast<size_t>(scale);
  if (bits == 32) return std::make_unique<DecimalReader<int32_t>>(places);
  if (bits == 64) return std::make_unique<DecimalReader<int64_t>>(places);
  if (bits == 128) return std::make_unique<DecimalReader<Int128>>(places);
  return nullptr;
}

class BooleanReader final : public ArrowReader {
  int64_t least_buffers() const override { return 2; }
  Value kind() const override { return Value::kOther; }
  void add_values(const ArrowArray& array, size_t begin, size_t end) override {
    for (size_t i = begin; i < end; ++i) {
      values_.arena.append(bit(array.buffers[1], i) ? "true" : "false");
      values_.end_value();
    }
  }
};

class NullReader final : public ArrowReader {
  int64_t least_buffers() const override { return 0; }
  Value kind() const override { return Value::kNull; }
  void add_values(const ArrowArray&, size_t begin, size_t end) override {
    for (size_t i = begin; i < end; ++i) values_.end_value();
  }
};

template <class Index>
class DictionaryReader final : public ArrowReader {
 public:
  explicit DictionaryReader(const ArrowSchema& schema) : schema_(schema) {}

 private:
  int64_t least_buffers() const override { return 2; }
  void add_values(const ArrowArray& array, size_t begin, size_t end) override {
    if (array.dictionary == nullptr) throw ArrowError("the dictionary is missing");
    const auto reader = of(schema_);
    reader->add(*array.dictionary);
    const Values words = reader->take();
    const size_t n = words.size();
    for (size_t i = begin; i < end; ++i) {
      if (array.buffers[0] == nullptr || bit(array.buffers[0], i)) {
        const Index index = load<Index>(array.buffers[1], i);
        if (std::cmp_less(index, 0) || std::cmp_greater_equal(index, n)) {
          throw ArrowError("an index is not in the dictionary");
        }
        const auto word = static_cast<size_t>(index);
        values_.arena.append(words[word]);
        values_.kinds[values_.size()] = words.kinds[word];
      }
      values_.end_value();
    }
  }

  const ArrowSchema& schema_;
};

template <template <class> class Reader, class... Arguments>
std::unique_ptr<ArrowReader> integers(char format, const Arguments&... arguments) {
  switch (format) {
    case 'c':
      return std::make_unique<Reader<int8_t>>(arguments...);
    case 'C':
      return std::make_unique<Reader<uint8_t>>(arguments...);
    case 's':
      return std::make_unique<Reader<int16_t>>(arguments...);
    case 'S':
      return std::make_unique<Reader<uint16_t>>(arguments...);
    case 'i':
      return std::make_unique<Reader<int32_t>>(arguments...);
    case 'I':
      return std::make_unique<Reader<uint32_t>>(arguments...);
    case 'l':
      return std::make_unique<Reader<int64_t>>(arguments...);
    case 'L':
      return std::make_unique<Reader<uint64_t>>(arguments...);
    default:
      return nullptr;
  }
}

}  // namespace

std::unique_ptr<ArrowReader> ArrowReader::of(const ArrowSchema& schema) {
  const std::string_view format = schema.format == nullptr ? "" : schema.format;
  if (schema.dictionary != nullptr) {
    if (format.size() != 1 || schema.dictionary->dictionary != nullptr || !of(*schema.dictionary)) return nullptr;
    return integers<DictionaryReader>(format[0], *schema.dictionary);
  }
  if (format.starts_with("d:")) return decimals(std::string(format));
  if (format == "vu") return std::make_unique<ViewReader>();
  if (format.size() != 1) return nullptr;
  switch (format[0]) {
    case 'u':
      return std::make_unique<Utf8Reader<int32_t>>();
    case 'U':
      return std::make_unique<Utf8Reader<int64_t>>();
    case 'n':
      return std::make_unique<NullReader>();
    case 'b':
      return std::make_unique<BooleanReader>();
    case 'e':
      return std::make_unique<NumberReader<Half>>();
    case 'f':
      return std::make_unique<NumberReader<float>>();
    case 'g':
      return std::make_unique<NumberReader<double>>();
    default:
      return integers<NumberReader>(format[0]);
  }
}

void ArrowReader::check(const ArrowArray& array) const {
  constexpr int64_t kMost = int64_t{1} << 40;  // elements; their sizes in bytes cannot overflow
  if (array.length < 0 || array.offset < 0 || array.length > kMost || array.offset > kMost) {
    throw ArrowError("its length or offset is negative or too large");
  }
  const int64_t least = array.length == 0 ? 0 : least_buffers();
  if (array.n_buffers < least || (least > 0 && (array.buffers == nullptr || array.buffers[1] == nullptr))) {
    throw ArrowError("a buffer is missing");
  }
}

void ArrowReader::expect(const ArrowArray& array) {
  check(array);
  if (array.length == 0) return;
  constexpr size_t kMost = size_t{1} << 30;  // more is not believed
  const auto begin = static_cast<size_t>(array.offset), count = static_cast<size_t>(array.length);
  const auto bytes = static_cast<size_t>(std::max(int64_t{0}, about_bytes(array, begin, begin + count)));
  expected_ = std::min(kMost, expected_ + count);
  expected_bytes_ = std::min(kMost, expected_bytes_ + std::min(kMost, bytes));
}

void ArrowReader::add(const ArrowArray& array, bool only) {
  check(array);
  if (array.length == 0) return;
  const auto begin = static_cast<size_t>(array.offset), end = begin + static_cast<size_t>(array.length);
  const int64_t least = least_buffers();
  const size_t before = values_.size();
  const size_t from = values_.arena.size(), count = end - begin;
  values_.arena.reserve(expected_bytes_);
  values_.bounds.reserve(1 + std::max(before + count, expected_));
  values_.kinds.reserve(expected_);
  std::fill_n(values_.kinds.room(count), count, kind());
  values_.kinds.advance(count);
  may_borrow_ = only && before == 0;
  add_values(array, begin, end);
  const void* validity = least == 0 ? nullptr : array.buffers[0];
  for (size_t i = begin; validity != nullptr && i < end; ++i) {
    if (!bit(validity, i)) values_.kinds[before + i - begin] = Value::kNull;
  }
  const std::string_view all = borrowed_.value_or(std::string_view(values_.arena.data(), values_.arena.size()));
  const std::string_view added = all.substr(from);
  if (is_ascii(added)) return;
  bool valid = find_invalid_utf8(added) == added.npos;
  for (size_t i = before; valid && i < values_.size(); ++i) {
    const auto at = static_cast<size_t>(values_.bounds[i]);
    valid = at == all.size() || !is_continuation(all[at]);
  }
  if (!valid) throw ArrowError("a text is not UTF-8");
}

}  // namespace bertnli

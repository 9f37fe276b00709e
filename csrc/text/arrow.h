// Columns of texts, numbers and booleans from Arrow's C data interface, as pyarrow, polars and pandas export them:
// https://arrow.apache.org/docs/format/CDataInterface.html and CStreamInterface.html
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "table.h"

// The structs of the specification.
struct ArrowSchema {
  const char *format, *name, *metadata;
  int64_t flags, n_children;
  ArrowSchema **children, *dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};

struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray **children, *dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

struct ArrowArrayStream {
  int (*get_schema)(ArrowArrayStream*, ArrowSchema*);
  int (*get_next)(ArrowArrayStream*, ArrowArray*);
  const char* (*get_last_error)(ArrowArrayStream*);
  void (*release)(ArrowArrayStream*);
  void* private_data;
};

namespace bertnli {

// An array that is not as its schema and the specification say.
struct ArrowError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Collects the arrays of one column. The interface has no sizes of buffers: offsets are checked to rise from 0 on, so
// that what they enclose is all that is read. Texts are checked to be UTF-8, but what is borrowed may change
// afterwards: who reads it must not rely on that.
class ArrowReader {
 public:
  // Null for a type that is neither text (utf8, large_utf8, utf8_view, dictionaries of these), number, decimal,
  // boolean nor null.
  static std::unique_ptr<ArrowReader> of(const ArrowSchema& schema);
  virtual ~ArrowReader() = default;
  // Adds the values of an array. Numbers and booleans are Value::kOther, as JSON writes them; NaN is null. Throws
  // ArrowError. `only`: there is no other array, which stays as long as the values: its texts need not be copied.
  void add(const ArrowArray& array, bool only = false);
  // Makes room for the values of an array that will be added among others. Throws ArrowError.
  void expect(const ArrowArray& array);
  // The bytes of the array that the bounds of the values are of; none if they are of the arena.
  std::optional<std::string_view> borrowed() const { return borrowed_; }
  Values take() { return std::move(values_); }

 protected:
  // Adds the elements [begin, end) of the array, whose buffers are there; kinds of null elements are set afterwards.
  virtual void add_values(const ArrowArray& array, size_t begin, size_t end) = 0;
  // About how many bytes the texts of the elements [begin, end) have; nothing was checked yet.
  virtual int64_t about_bytes(const ArrowArray&, size_t, size_t) const { return 0; }
  // The buffers that the type has at least.
  virtual int64_t least_buffers() const = 0;
  virtual Value kind() const { return Value::kText; }

  // Throws ArrowError unless the array has its buffers and a possible length.
  void check(const ArrowArray& array) const;

  Values values_;
  size_t expected_ = 0, expected_bytes_ = 0;
  std::optional<std::string_view> borrowed_;
  bool may_borrow_ = false;
};

}  // namespace bertnli

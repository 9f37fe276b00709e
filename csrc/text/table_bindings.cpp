#include "table_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrow.h"
#include "python_strings.h"
#include "table.h"
#include "text_file.h"

namespace bertnli {
namespace {

Array<int64_t> to_array(const std::vector<int64_t>& v) {
  return Array<int64_t>(static_cast<py::ssize_t>(v.size()), v.data());
}

// An array of other elements of the same size, without a copy.
template <class T, class Element>
Array<T> own(Growing<Element>&& elements) {
  static_assert(sizeof(T) == sizeof(Element));
  const size_t size = elements.size();
  Buffer* buffer = elements.release();
  if (buffer == nullptr) return Array<T>(0);
  const py::capsule owner(buffer, [](void* p) { give_buffer(static_cast<Buffer*>(p)); });
  return Array<T>(static_cast<py::ssize_t>(size), static_cast<const T*>(buffer->data), owner);
}

// (arena, starts and ends [width, rows], kinds [width, rows] or None)
py::tuple own(Values&& values, size_t width) {
  const size_t count = values.size(), rows = width == 0 ? 0 : count / width;
  py::object bounds;
  const std::array shape{static_cast<py::ssize_t>(width), static_cast<py::ssize_t>(rows)};
  if (width == 1) {  // the bounds are both: each text ends where the next one begins
    const size_t bytes = sizeof(int64_t);
    const auto all = own<int64_t>(std::move(values.bounds));
    const std::array strides{static_cast<py::ssize_t>(bytes), static_cast<py::ssize_t>(bytes * rows),
                             static_cast<py::ssize_t>(bytes)};
    bounds = py::array_t<int64_t>(std::array{py::ssize_t{2}, shape[0], shape[1]}, strides, all.data(), all);
  } else {
    Growing<int64_t> both;
    int64_t* to = both.room(2 * count);
    both.advance(2 * count);
    for (size_t column = 0; column < width; ++column) {
      for (size_t row = 0; row < rows; ++row) {
        const size_t i = row * width + column;
        to[column * rows + row] = values.bounds[i];
        to[(width + column) * rows + row] = values.bounds[i + 1];
      }
    }
    bounds = own<int64_t>(std::move(both)).attr("reshape")(2, shape[0], shape[1]);
  }
  const Value* kind = values.kinds.data();
  py::object kinds = py::none();
  if (!std::all_of(kind, kind + values.kinds.size(), [](Value v) { return v == Value::kText; })) {
    Array<uint8_t> array(shape);
    for (size_t i = 0; i < count; ++i) {
      array.mutable_at(i % width, i / width) = static_cast<uint8_t>(kind[i]);
    }
    kinds = array;
  }
  return py::make_tuple(own<uint8_t>(std::move(values.arena)), bounds, kinds);
}

TableOptions::Format format_of(const std::string& name) {
  if (name == "delimited") return TableOptions::Format::kDelimited;
  if (name == "lines") return TableOptions::Format::kJsonLines;
  if (name == "array") return TableOptions::Format::kJsonArray;
  throw py::value_error("format must be 'delimited', 'lines' or 'array', not '" + name + "'");
}

char delimiter_of(const std::string& delimiter) {
  const char c = delimiter.size() == 1 ? delimiter[0] : '\0';
  if (c > 0 && c != '"' && c != '\n' && c != '\r') return c;
  throw py::value_error("delimiter must be one ASCII character, and no quote or line end; found '" + delimiter + "'");
}

std::unique_ptr<TableReader> make_reader(const std::string& name, const std::string& format,
                                         const std::string& delimiter, bool quotes, bool header,
                                         std::vector<std::string> keys, bool whole, size_t bytes, bool keep_bad) {
  return std::make_unique<TableReader>(TableOptions{name, format_of(format), delimiter_of(delimiter), quotes, header,
                                                    std::move(keys), whole, bytes, keep_bad});
}

// Calls work(bytes) with the content of a buffer.
template <class Work>
void with_bytes(const py::buffer& block, const Work& work) {
  const py::buffer_info info = block.request();
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1)) {
    throw py::type_error("block must be contiguous bytes");
  }
  work(std::string_view(static_cast<const char*>(info.ptr), static_cast<size_t>(info.size)));
}

py::tuple take(TableReader& reader, size_t width) {
  TableRows rows = reader.take();
  py::list bad;
  for (const BadRow& row : rows.bad) {
    bad.append(py::make_tuple(row.line, row.message, py::bytes(row.text)));
  }
  if (rows.values.size() != rows.lines.size() * width) throw py::value_error("the rows have another width");
  return own(std::move(rows.values), width) + py::make_tuple(own<int64_t>(std::move(rows.lines)), bad);
}

py::tuple distinct(const Array<uint8_t>& arena, const Array<int64_t>& starts, const Array<int64_t>& ends,
                   const std::optional<Array<uint8_t>>& kinds) {
  const auto n = static_cast<size_t>(starts.size());
  if (ends.size() != starts.size() || (kinds && kinds->size() != starts.size())) {
    throw py::value_error("starts, ends and kinds differ in length");
  }
  // Copies: another thread may write to the arrays after they were checked.
  const std::vector<int64_t> from(starts.data(), starts.data() + n), to(ends.data(), ends.data() + n);
  for (size_t i = 0; i < n; ++i) {
    if (from[i] < 0 || from[i] > to[i] || to[i] > arena.size()) {
      throw py::value_error(row_name("texts", i) + " lies outside its arena");
    }
  }
  const Distinct found = find_distinct(reinterpret_cast<const char*>(arena.data()), from.data(), to.data(),
                                       kinds ? kinds->data() : nullptr, n);
  return py::make_tuple(to_array(found.index), to_array(found.codes));
}

template <class T>
T* pointer_of(const py::object& capsule, const char* name) {
  auto* p = static_cast<T*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (p == nullptr) throw py::error_already_set();
  if (p->release == nullptr) throw py::value_error(std::string(name) + " was read already");
  return p;
}

template <class T>
struct Released : T {
  Released() : T{} {}
  ~Released() {
    if (this->release != nullptr) this->release(this);
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;
};

void check(int code, ArrowArrayStream& stream) {
  if (code == 0) return;
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  const char* message = stream.get_last_error(&stream);
  throw py::value_error(message == nullptr ? "the Arrow stream cannot be read" : message);
}

using Held = std::unique_ptr<Released<ArrowArray>>;

// (arena, bounds, kinds or None) of a column's arrays. Of a single one the texts stay where they are.
py::object own_arrays(ArrowReader& reader, std::vector<Held> arrays) {
  for (const Held& array : arrays) reader.expect(*array);
  for (const Held& array : arrays) reader.add(*array, arrays.size() == 1);
  const auto borrowed = reader.borrowed();
  py::tuple found = own(reader.take(), 1);
  if (!borrowed) return found;
  const py::capsule owner(arrays[0].release(), [](void* p) { delete static_cast<Released<ArrowArray>*>(p); });
  const Array<uint8_t> arena(static_cast<py::ssize_t>(borrowed->size()),
                             reinterpret_cast<const uint8_t*>(borrowed->data()), owner);
  py::detail::array_proxy(arena.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return py::make_tuple(arena, found[1], found[2]);
}

std::vector<Held> arrays_of(ArrowArrayStream& stream) {
  std::vector<Held> arrays;
  for (;;) {
    auto array = std::make_unique<Released<ArrowArray>>();
    check(stream.get_next(&stream, array.get()), stream);
    if (array->release == nullptr) return arrays;
    if (array->length != 0) arrays.push_back(std::move(array));
  }
}

// (arena, bounds, kinds or None); None if the column is of another type.
py::object read_arrow(const py::object& column) {
  try {
    if (py::hasattr(column, "__arrow_c_stream__")) {
      const py::object capsule = column.attr("__arrow_c_stream__")();
      auto& stream = *pointer_of<ArrowArrayStream>(capsule, "arrow_array_stream");
      Released<ArrowSchema> schema;
      check(stream.get_schema(&stream, &schema), stream);
      const auto reader = ArrowReader::of(schema);
      return reader == nullptr ? py::none() : own_arrays(*reader, arrays_of(stream));
    }
    if (!py::hasattr(column, "__arrow_c_array__")) {
      throw py::type_error("column must have __arrow_c_stream__ or __arrow_c_array__");
    }
    const auto both = py::cast<py::tuple>(column.attr("__arrow_c_array__")());
    if (both.size() != 2) throw py::value_error("__arrow_c_array__ must return a schema and an array");
    const auto reader = ArrowReader::of(*pointer_of<ArrowSchema>(both[0], "arrow_schema"));
    if (reader == nullptr) return py::none();
    auto& given = *pointer_of<ArrowArray>(both[1], "arrow_array");
    std::vector<Held> arrays;
    arrays.push_back(std::make_unique<Released<ArrowArray>>());
    static_cast<ArrowArray&>(*arrays[0]) = std::exchange(given, ArrowArray{});  // as the interface moves arrays
    return own_arrays(*reader, std::move(arrays));
  } catch (const ArrowError& e) {
    throw py::value_error(std::string("not an Arrow column: ") + e.what());
  }
}

}  // namespace

void bind_tables(py::module_& m) {
  py::class_<TableReader>(m, "TableReader")
      .def(py::init(&make_reader), py::arg("name"), py::arg("format"), py::arg("delimiter"), py::arg("quotes"),
           py::arg("header"), py::arg("keys"), py::arg("whole"), py::arg("bytes"), py::arg("keep_bad"))
      .def_property_readonly("header", [](const TableReader& reader) { return reader.header(); })
      .def_property_readonly("rows", &TableReader::rows)
      .def("choose", &TableReader::choose, py::arg("columns"))
      .def(
          "feed",
          [](TableReader& reader, const py::buffer& block, bool last) {
            with_bytes(block, [&](std::string_view bytes) { reader.feed(bytes, last); });
          },
          py::arg("block"), py::arg("last"))
      .def("take", &take, py::arg("width"));
  py::class_<QuoteScan>(m, "QuoteScan")
      .def(py::init([](const std::string& delimiter) { return QuoteScan(delimiter_of(delimiter)); }),
           py::arg("delimiter"))
      .def(
          "feed",
          [](QuoteScan& scan, const py::buffer& block) {
            with_bytes(block, [&](std::string_view bytes) { scan.feed(bytes); });
            return scan.may_be_consistent();
          },
          py::arg("block"))
      .def_property_readonly("consistent", &QuoteScan::consistent)
      .def_property_readonly("ambiguous_line", &QuoteScan::ambiguous_line);
  m.def("distinct", &distinct, py::arg("arena").noconvert(), py::arg("starts"), py::arg("ends"), py::arg("kinds"));
  m.def("read_arrow", &read_arrow, py::arg("column"));
}

}  // namespace bertnli

// bertnli._text: where the text pipeline meets Python. Arguments become views under the GIL, the work runs without it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <optional>

#include "buffers.h"
#include "digest.h"
#include "ids.h"
#include "mapped_file.h"
#include "pairs.h"
#include "parse.h"
#include "reader.h"
#include "unicode.h"
#include "wordpiece.h"
#include "words.h"

namespace py = pybind11;
using namespace bertnli;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

std::string row_name(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

// The bytes of one str, kept alive by it.
std::string_view utf8(PyObject* text, const char* name, std::optional<size_t> row) {
  const auto where = [&] { return row ? row_name(name, *row) : std::string(name); };
  if (!PyUnicode_Check(text)) throw py::type_error(where() + " must be str, not " + Py_TYPE(text)->tp_name);
  if (PyUnicode_IS_COMPACT_ASCII(text)) {
    return {static_cast<const char*>(PyUnicode_DATA(text)), static_cast<size_t>(PyUnicode_GET_LENGTH(text))};
  }
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text, &size);
  if (data == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw py::error_already_set();
    PyErr_Clear();
    throw py::value_error(where() +
                          " has a lone surrogate, which is no text; replace it, for example with "
                          "text.encode('utf-8', 'replace').decode()");
  }
  return {data, static_cast<size_t>(size)};
}

py::object lowered(PyObject* text) {
  PyObject* low = PyObject_CallMethod(text, "lower", nullptr);
  if (low == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(low);
}

// Objects of a list or tuple, each owned from when it is taken until it is released, in a ring. They lie anywhere in
// memory, and waiting for each would cost more than encoding it: so each pass asks for objects ahead.
class Objects {
 public:
  Objects() = default;
  ~Objects() { release(taken_); }
  Objects(const Objects&) = delete;
  Objects& operator=(const Objects&) = delete;
  // For n objects of which `most` are owned at once.
  void resize(size_t n, size_t most) { items_.resize(std::bit_ceil(std::max<size_t>(std::min(n, most), 1))); }
  size_t mask() const { return items_.size() - 1; }
  // Calls work(i, object) with each of [begin, end), owned by then; it must not run Python code, which could change the
  // list. Their places in the ring must have been released.
  template <class Work>
  void take(PyObject* source, size_t begin, size_t end, const Work& work) {
    PyObject** items = PySequence_Fast_ITEMS(source);
    for (size_t i = begin; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(items[i + kAhead], 1);
      Py_INCREF(items[i]);
      items_[i & mask()] = items[i];
      taken_ = i + 1;
      work(i, items[i]);
    }
  }
  // Those before `end`. The last owner of an object may be this: then Python code may run.
  void release(size_t end) {
    while (released_ < end) {
      const size_t i = released_++;
      if (i + kAhead < end) __builtin_prefetch(items_[(i + kAhead) & mask()], 1);
      Py_DECREF(items_[i & mask()]);
    }
  }
  PyObject* operator[](size_t i) const { return items_[i & mask()]; }
  // Owns this one instead.
  void replace(size_t i, py::object by) {
    const auto old = py::reinterpret_steal<py::object>(std::exchange(items_[i & mask()], by.release().ptr()));
  }

 private:
  static constexpr size_t kAhead = 16;
  std::vector<PyObject*> items_;
  size_t released_ = 0, taken_ = 0;
};

// Texts of a call: a list or tuple of str, or the tuple (arena uint8 [bytes], starts int64 [N], ends int64 [N]). Holds
// what the views need, of a list as much as was taken. With `lower`, text beyond ASCII is lowered here, by Python, so
// that it is exact for the running version.
class TextArgument {
 public:
  // Of a list, at most `most` texts are taken at once.
  TextArgument(const py::object& source, const char* name, bool lower, size_t most = Pieces::kReady)
      : name_(name), lower_(lower) {
    if (!PyList_Check(source.ptr()) && !PyTuple_Check(source.ptr())) {
      throw py::type_error(std::string(name) + " must be a list or tuple of str, not " +
                           Py_TYPE(source.ptr())->tp_name);
    }
    if (py::isinstance<py::tuple>(source) && py::len(source) == 3) {
      const auto arrays = py::reinterpret_borrow<py::tuple>(source);
      if (py::isinstance<py::array>(arrays[0])) {
        from_arena(arrays);
        return;
      }
    }
    source_ = source;
    texts_.size = py::len(source);
    objects_.resize(texts_.size, most);
    texts_.mask = objects_.mask();
    views_.resize(texts_.mask + 1);
    texts_.views = views_.data();
  }
  TextArgument(const TextArgument&) = delete;
  TextArgument& operator=(const TextArgument&) = delete;
  const Texts& texts() const { return texts_; }
  // Makes the texts [begin, end) readable; those before `over` may go. The objects are owned meanwhile, for without the
  // GIL others may change the list; how long it is must stay.
  void take(size_t over, size_t begin, size_t end) {
    if (!source_) return;  // all are
    objects_.release(over);
    if (static_cast<size_t>(PySequence_Fast_GET_SIZE(source_.ptr())) != texts_.size) {
      throw std::runtime_error(std::string(name_) + " changed size while they were encoded");
    }
    std::vector<size_t> foreign;
    objects_.take(source_.ptr(), begin, end, [&](size_t i, PyObject* text) {
      views_[i & texts_.mask] = utf8(text, name_, i);
      if (lower_ && !PyUnicode_IS_ASCII(text)) foreign.push_back(i);
    });
    for (const size_t i : foreign) {
      objects_.replace(i, lowered(objects_[i]));
      views_[i & texts_.mask] = utf8(objects_[i], name_, i);
    }
  }

 private:
  void from_arena(const py::tuple& arrays) {
    const auto arena = py::cast<Array<uint8_t>>(arrays[0]);
    const auto starts = py::cast<Array<int64_t>>(arrays[1]), ends = py::cast<Array<int64_t>>(arrays[2]);
    const char* base = reinterpret_cast<const char*>(arena.data());
    texts_ = {static_cast<size_t>(starts.size()), nullptr, base, base + arena.size(), starts.data(), ends.data()};
    if (ends.size() != starts.size()) throw py::value_error(std::string(name_) + ": starts and ends differ in length");
    for (size_t i = 0; i < texts_.size; ++i) {
      if (texts_.starts[i] < 0 || texts_.starts[i] > texts_.ends[i] || texts_.ends[i] > arena.size()) {
        throw py::value_error(row_name(name_, i) + " lies outside its arena");
      }
    }
    arena_ = py::make_tuple(arena, starts, ends);  // (casts may have made copies)
    if (!lower_ || is_ascii({texts_.base, static_cast<size_t>(arena.size())})) return;
    views_.reserve(texts_.size);
    for (size_t i = 0; i < texts_.size; ++i) {
      const std::string_view view = texts_[i];
      if (is_ascii(view)) {
        views_.push_back(view);
      } else {
        PyObject* text = PyUnicode_DecodeUTF8(view.data(), static_cast<Py_ssize_t>(view.size()), nullptr);
        if (text == nullptr) throw py::error_already_set();
        const auto owned = py::reinterpret_steal<py::object>(text);
        kept_.push_back(lowered(owned.ptr()));
        views_.push_back(utf8(kept_.back().ptr(), name_, i));
      }
    }
    texts_.views = views_.data();
  }

  const char* const name_;
  const bool lower_;
  py::object source_;  // the list or tuple, if it is one of str
  Objects objects_;
  py::tuple arena_;
  std::vector<std::string_view> views_;
  std::vector<py::object> kept_;
  Texts texts_;
};

// Of this shape, not yet written.
template <class T, size_t dims>
Array<T> uninitialized(const std::array<size_t, dims>& shape) {
  size_t bytes = sizeof(T);
  for (const size_t n : shape) {
    if (n != 0 && bytes > SIZE_MAX / 2 / n) throw std::bad_alloc();
    bytes *= n;
  }
  if (bytes < kLeastBuffer) return Array<T>(shape);
  Buffer* buffer = take_buffer(bytes);
  py::capsule owner(buffer, [](void* p) { give_buffer(static_cast<Buffer*>(p)); });
  return Array<T>(shape, static_cast<T*>(buffer->data), owner);
}

template <class T>
Array<T> to_array(const std::vector<T>& v) {
  return Array<T>(static_cast<py::ssize_t>(v.size()), v.data());
}

Array<int32_t> to_array(Ids&& ids) {
  auto* kept = new Ids(std::move(ids));
  py::capsule owner(kept, [](void* p) { delete static_cast<Ids*>(p); });
  return Array<int32_t>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

Truncation rule_of(const std::string& name) {
  if (name == "longest_first") return Truncation::kLongestFirst;
  if (name == "longest_first_hf") return Truncation::kLongestFirstHf;
  if (name == "ratio") return Truncation::kRatio;
  if (name == "only_first") return Truncation::kOnlyFirst;
  if (name == "only_second") return Truncation::kOnlySecond;
  throw py::value_error(
      "truncation must be 'longest_first', 'longest_first_hf', 'ratio', 'only_first' or 'only_second', not '" + name +
      "'");
}

void check_max_len(int64_t max_len, bool pairs) {
  if (max_len > INT32_MAX) throw py::value_error("max_len is too large");
  if (max_len < (pairs ? 3 : 2)) {
    throw py::value_error("max_len must be at least " + std::string(pairs ? "3" : "2") +
                          " to hold the special tokens, not " + std::to_string(max_len));
  }
}

// The arguments of an encode call, checked.
struct Call {
  Call(const Tokenizer& tokenizer, const py::object& first, const std::optional<py::object>& second, int64_t max_len,
       const std::string& truncation, int threads)
      : first_(first, second ? "premises" : "texts", tokenizer.wants_lowered()),
        job{tokenizer,
            first_.texts(),
            nullptr,
            static_cast<size_t>(max_len),
            rule_of(truncation),
            threads,
            {second ? "premises" : "texts", "hypotheses"}} {
    check_max_len(max_len, second.has_value());
    if (second) {
      second_.emplace(*second, "hypotheses", tokenizer.wants_lowered());
      if (second_->texts().size != first_.texts().size) {
        throw py::value_error("premises and hypotheses must be equally many: found " +
                              std::to_string(first_.texts().size) + " and " + std::to_string(second_->texts().size));
      }
      job.second = &second_->texts();
    }
    job.take = [this](size_t over, size_t begin, size_t end) {
      free_gil_.reset();
      first_.take(over, begin, end);
      if (second_) second_->take(over, begin, end);
      free_gil_.emplace();
    };
  }
  // Calls work(), which takes texts; the GIL is held again when this ends, also by an exception.
  template <class Work>
  void run(const Work& work) {
    struct HoldAgain {
      std::optional<py::gil_scoped_release>& free_gil;
      ~HoldAgain() { free_gil.reset(); }
    } hold_again{free_gil_};
    work();
  }

  TextArgument first_;
  std::optional<TextArgument> second_;
  Job job;

 private:
  std::optional<py::gil_scoped_release> free_gil_;  // the GIL is free from taking texts to taking the next
};

py::list encode_one(const Tokenizer& tokenizer, const py::object& text) {
  std::string_view view = utf8(text.ptr(), "text", {});
  py::object keep = text;
  if (tokenizer.wants_lowered() && !PyUnicode_IS_ASCII(text.ptr())) {
    keep = lowered(text.ptr());
    view = utf8(keep.ptr(), "text", {});
  }
  Ids ids;
  {
    py::gil_scoped_release free_gil;
    Tokenizer::CacheLoan cache(tokenizer);
    tokenizer.encode(view, view.data() + view.size(), {}, *cache, ids);
  }
  py::list out(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) out[i] = ids.data()[i];
  return out;
}

py::tuple encode_ragged_py(const Tokenizer& tokenizer, const py::object& first, const std::optional<py::object>& second,
                           int64_t max_len, const std::string& truncation, int threads) {
  Call call(tokenizer, first, second, max_len, truncation, threads);
  const size_t n = call.job.first.size;
  auto offsets = uninitialized<int64_t>(std::array{n + 1});
  auto first_lens = uninitialized<int32_t>(std::array{n});
  Ids ids;
  auto* o = offsets.mutable_data();
  auto* f = first_lens.mutable_data();
  call.run([&] { ids = encode_ragged(call.job, o, f); });
  return py::make_tuple(to_array(std::move(ids)), offsets, first_lens);
}

// str.lower(), from a thread that may not hold the GIL.
std::string lower_by_python(std::string_view text) {
  const py::gil_scoped_acquire gil;
  PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
  if (decoded == nullptr) throw py::error_already_set();
  const auto owned = py::reinterpret_steal<py::object>(decoded);
  const py::object low = lowered(owned.ptr());
  return std::string(utf8(low.ptr(), "text", {}));
}

py::tuple encode_file_py(const Tokenizer& tokenizer, const std::string& path, bool json_lines, bool parse,
                         bool strict_labels, bool indices, std::vector<std::string> label_names, int64_t max_len,
                         const std::string& truncation, int threads) {
  check_max_len(max_len, true);
  RowOptions rows{tokenizer, static_cast<size_t>(max_len), rule_of(truncation), parse};
  if (tokenizer.wants_lowered()) rows.lower = lower_by_python;
  const ReadOptions read{json_lines, parse, strict_labels, indices, std::move(label_names), threads};
  EncodedFile file;
  {
    py::gil_scoped_release free_gil;
    file = encode_file(path, read, rows);
  }
  const size_t n = file.lengths.size();
  auto offsets = uninitialized<int64_t>(std::array{n + 1}), labels = uninitialized<int64_t>(std::array{n});
  int64_t *o = offsets.mutable_data(), *l = labels.mutable_data();
  o[0] = 0;
  for (size_t i = 0; i < n; ++i) {
    o[i + 1] = o[i] + file.lengths.data()[i];
    l[i] = file.labels.data()[i];
  }
  return py::make_tuple(to_array(std::move(file.ids)), offsets, to_array(std::move(file.first_lens)), labels,
                        file.dropped);
}

// token_ids and segments [rows, max_len] and valid_lens [rows], not yet written.
struct Padded {
  Padded(size_t rows, size_t max_len)
      : ids(uninitialized<int64_t>(std::array{rows, max_len})),
        segments(uninitialized<int64_t>(std::array{rows, max_len})),
        lens(uninitialized<int64_t>(std::array{rows})) {}
  py::tuple arrays() const { return py::make_tuple(ids, segments, lens); }

  Array<int64_t> ids, segments, lens;
};

py::tuple encode_dense_py(const Tokenizer& tokenizer, const py::object& first, const std::optional<py::object>& second,
                          int64_t max_len, const std::string& truncation, int threads) {
  Call call(tokenizer, first, second, max_len, truncation, threads);
  Padded out(call.job.first.size, call.job.max_len);
  auto *i = out.ids.mutable_data(), *s = out.segments.mutable_data(), *l = out.lens.mutable_data();
  call.run([&] { encode_dense(call.job, i, s, l); });
  return out.arrays();
}

py::tuple encode_spans_py(const Tokenizer& tokenizer, const py::object& texts, int threads) {
  TextArgument given(texts, "texts", false, SIZE_MAX), lowered(texts, "texts", tokenizer.wants_lowered(), SIZE_MAX);
  const auto n = given.texts().size;
  given.take(0, 0, n);
  lowered.take(0, 0, n);
  for (size_t i = 0; i < n; ++i) {
    if (given.texts()[i].size() > INT32_MAX) throw py::value_error(row_name("texts", i) + " is longer than 2 GiB");
  }
  Array<int64_t> offsets(static_cast<py::ssize_t>(n) + 1);
  Spans spans;
  {
    int64_t* o = offsets.mutable_data();
    py::gil_scoped_release free_gil;
    spans = encode_spans(tokenizer, given.texts(), lowered.texts(), threads, o);
  }
  return py::make_tuple(to_array(std::move(spans.ids)), offsets, to_array(std::move(spans.starts)),
                        to_array(std::move(spans.ends)), to_array(std::move(spans.words)));
}

// A ragged store from Python: checked as far as a gather relies on it.
struct Store {
  Store(const Array<int32_t>& ids, const Array<int64_t>& offsets, const Array<int32_t>& first_lens)
      : rows(first_lens.size()), total(ids.size()), ragged{ids.data(), offsets.data(), first_lens.data()} {
    if (offsets.size() != rows + 1) throw py::value_error("offsets must have one element more than first_lens");
  }
  // The length of row i. Offsets may come from a file, so each row is checked as it is used.
  int64_t length(int64_t i) const {
    if (i < 0 || i >= rows) {
      throw py::index_error("row " + std::to_string(i) + " is out of range for " + std::to_string(rows) + " rows");
    }
    const int64_t from = ragged.offsets[i], to = ragged.offsets[i + 1];
    const int32_t first = ragged.first_lens[i];
    if (from < 0 || from > to || to > total || first < 0 || first > to - from) {
      throw py::value_error("row " + std::to_string(i) + " of the encoded pairs is damaged");
    }
    return to - from;
  }
  py::ssize_t rows, total;
  Ragged ragged;
};

py::tuple gather_packed_py(const Array<int32_t>& ids, const Array<int64_t>& offsets, const Array<int32_t>& first_lens,
                           const Array<int64_t>& rows) {
  const Store store(ids, offsets, first_lens);
  const auto count = static_cast<size_t>(rows.size());
  Array<int32_t> cu_seqlens(static_cast<py::ssize_t>(count) + 1);
  int32_t* cu = cu_seqlens.mutable_data();
  int64_t total = 0, longest = 0;
  cu[0] = 0;
  for (size_t b = 0; b < count; ++b) {
    const int64_t length = store.length(rows.data()[b]);
    total += length;
    longest = std::max(longest, length);
    if (total > INT32_MAX) throw py::value_error("a batch holds at most 2^31 - 1 tokens; take fewer rows");
    cu[b + 1] = static_cast<int32_t>(total);
  }
  Array<int32_t> input_ids(total), segments(total), positions(total);
  int32_t *i = input_ids.mutable_data(), *s = segments.mutable_data(), *p = positions.mutable_data();
  const int64_t* r = rows.data();
  {
    py::gil_scoped_release free_gil;
    gather_packed(store.ragged, r, count, i, s, p, cu);
  }
  return py::make_tuple(input_ids, segments, positions, cu_seqlens, longest);
}

py::tuple gather_dense_py(const Array<int32_t>& ids, const Array<int64_t>& offsets, const Array<int32_t>& first_lens,
                          const std::optional<Array<int64_t>>& rows, int64_t pad, int64_t max_len) {
  const Store store(ids, offsets, first_lens);
  const auto count = static_cast<size_t>(rows ? rows->size() : store.rows);
  const int64_t* r = rows ? rows->data() : nullptr;
  if (max_len < 0) throw py::value_error("max_len must not be negative: " + std::to_string(max_len));
  for (size_t b = 0; b < count; ++b) {
    const int64_t length = store.length(r != nullptr ? r[b] : static_cast<int64_t>(b));
    if (length > max_len) {
      throw py::value_error("a row of " + std::to_string(length) + " tokens does not fit into max_len " +
                            std::to_string(max_len));
    }
  }
  Padded out(count, static_cast<size_t>(max_len));
  auto *i = out.ids.mutable_data(), *s = out.segments.mutable_data(), *l = out.lens.mutable_data();
  {
    py::gil_scoped_release free_gil;
    gather_dense(store.ragged, r, count, static_cast<size_t>(max_len), pad, i, s, l);
  }
  return out.arrays();
}

py::tuple read_pairs_py(const std::string& path, bool json_lines, bool parse, bool strict_labels, bool indices,
                        std::vector<std::string> label_names, int threads) {
  PairTable table;
  {
    py::gil_scoped_release free_gil;
    table = read_pairs(path, {json_lines, parse, strict_labels, indices, std::move(label_names), threads});
  }
  Array<uint8_t> arena(static_cast<py::ssize_t>(table.arena.size()),
                       reinterpret_cast<const uint8_t*>(table.arena.data()));
  py::list labels(table.labels.size());
  for (size_t i = 0; i < table.labels.size(); ++i) labels[i] = table.labels[i];
  return py::make_tuple(arena, to_array(table.premises.starts), to_array(table.premises.ends),
                        to_array(table.hypotheses.starts), to_array(table.hypotheses.ends), labels, table.dropped);
}

}  // namespace

PYBIND11_MODULE(_text, m) {
  m.attr("torch_version") = BERTNLI_TORCH_VERSION;

  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const FormatError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const std::system_error& e) {
      errno = e.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });

  py::class_<Tokenizer>(m, "Tokenizer")
      .def("encode", &encode_one, py::arg("text"))
      .def("encode_ragged", &encode_ragged_py, py::arg("first"), py::arg("second"), py::arg("max_len"),
           py::arg("truncation"), py::arg("num_threads"))
      .def("encode_dense", &encode_dense_py, py::arg("first"), py::arg("second"), py::arg("max_len"),
           py::arg("truncation"), py::arg("num_threads"))
      .def("encode_file", &encode_file_py, py::arg("path"), py::arg("json_lines"), py::arg("parse"),
           py::arg("strict_labels"), py::arg("indices"), py::arg("label_names"), py::arg("max_len"),
           py::arg("truncation"), py::arg("num_threads"))
      .def("encode_spans", &encode_spans_py, py::arg("texts"), py::arg("num_threads"));
  py::class_<WordTokenizer, Tokenizer>(m, "WordTokenizer")
      .def(py::init([](const VocabItems& vocab, int32_t pad, int32_t cls, int32_t sep, int32_t unk) {
             return std::make_unique<WordTokenizer>(vocab, SpecialIds{pad, cls, sep, unk});
           }),
           py::arg("vocab"), py::arg("pad"), py::arg("cls"), py::arg("sep"), py::arg("unk"));
  py::class_<WordPieceTokenizer, Tokenizer>(m, "WordPieceTokenizer")
      .def(py::init([](const VocabItems& vocab, int32_t pad, int32_t cls, int32_t sep, int32_t unk,
                       const Literals& literals, bool lowercase) {
             return std::make_unique<WordPieceTokenizer>(vocab, SpecialIds{pad, cls, sep, unk}, literals, lowercase);
           }),
           py::arg("vocab"), py::arg("pad"), py::arg("cls"), py::arg("sep"), py::arg("unk"), py::arg("literals"),
           py::arg("lowercase"));
  m.def("read_pairs", &read_pairs_py, py::arg("path"), py::arg("json_lines"), py::arg("parse"),
        py::arg("strict_labels"), py::arg("indices"), py::arg("label_names"), py::arg("num_threads"));
  m.def(
      "digest_file",
      [](const std::string& path) {
        const py::gil_scoped_release free_gil;
        return digest(MappedFile(path).view());
      },
      py::arg("path"));
  m.def(
      "extract_text",
      [](const std::string& parse) {
        std::string out;
        extract_text(parse, out);
        return out;
      },
      py::arg("parse"));
  m.def("gather_packed", &gather_packed_py, py::arg("ids").noconvert(), py::arg("offsets").noconvert(),
        py::arg("first_lens").noconvert(), py::arg("rows").noconvert());
  m.def("gather_dense", &gather_dense_py, py::arg("ids").noconvert(), py::arg("offsets").noconvert(),
        py::arg("first_lens").noconvert(), py::arg("rows"), py::arg("pad"), py::arg("max_len"));
}

// Texts that come from Python, as views. The only header of this folder that needs Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "encode.h"
#include "unicode.h"

namespace bertnli {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

inline std::string row_name(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

// The bytes of one str, kept alive by it.
inline std::string_view utf8(PyObject* text, const char* name, std::optional<size_t> row) {
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

inline py::object lowered(PyObject* text) {
  PyObject* low = PyObject_CallMethod(text, "lower", nullptr);
  if (low == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(low);
}

// A ring of the objects of a list or tuple that are owned now: from take() to release(). Objects are scattered in
// memory, so both prefetch the next ones.
class Objects {
 public:
  Objects() = default;
  ~Objects() { release(taken_); }
  Objects(const Objects&) = delete;
  Objects& operator=(const Objects&) = delete;
  // Makes room for n objects, of which `most` are owned at a time.
  void resize(size_t n, size_t most) { items_.resize(std::bit_ceil(std::max<size_t>(std::min(n, most), 1))); }
  size_t mask() const { return items_.size() - 1; }
  // Owns the objects [begin, end) and calls work(i, object) for each, which must not run Python code: that could change
  // the list. Their slots in the ring must have been released.
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
  // Releases the objects before `end`, which may run Python code (their destructors).
  void release(size_t end) {
    while (released_ < end) {
      const size_t i = released_++;
      if (i + kAhead < end) __builtin_prefetch(items_[(i + kAhead) & mask()], 1);
      Py_DECREF(items_[i & mask()]);
    }
  }
  PyObject* operator[](size_t i) const { return items_[i & mask()]; }
  // Owns `by` in place of object i.
  void replace(size_t i, py::object by) {
    const auto old = py::reinterpret_steal<py::object>(std::exchange(items_[i & mask()], by.release().ptr()));
  }

 private:
  static constexpr size_t kAhead = 16;
  std::vector<PyObject*> items_;
  size_t released_ = 0, taken_ = 0;
};

// The texts of a call: a list or tuple of str, or the tuple (arena uint8 [bytes], starts int64 [N], ends int64 [N]).
// Owns what the views point to (of a list, what was taken). With `lower`, text beyond ASCII is lowered here by Python,
// whose version decides what str.lower() gives.
class TextArgument {
 public:
  // most: how many texts of a list are owned at a time
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
  // Makes the texts [begin, end) readable; texts before `over` may be released. Other threads may change the list while
  // the GIL is free, but not its length.
  void take(size_t over, size_t begin, size_t end) {
    if (!source_) return;  // all texts are readable
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
  py::object source_;  // the list or tuple of str; null for an arena
  Objects objects_;
  py::tuple arena_;
  std::vector<std::string_view> views_;
  std::vector<py::object> kept_;
  Texts texts_;
};

}  // namespace bertnli

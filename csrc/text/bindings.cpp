// bertnli._text: the Python interface of the text stage. Arguments become views under the GIL, the work runs without
// it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "buffers.h"
#include "encode.h"
#include "gather.h"
#include "id_buffer.h"
#include "parse.h"
#include "python_strings.h"
#include "reader.h"
#include "table_bindings.h"
#include "word_tokenizer.h"
#include "wordpiece_tokenizer.h"

using namespace bertnli;

namespace {

// Takes the GIL by `take`. While the interpreter exits, Python ends a thread that asks for the GIL by unwinding its
// stack, and the first destructor on the way would abort the process. Such a thread sleeps until the process is gone.
template <class Take>
void take_gil(const Take& take) noexcept {
  try {
    take();
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Frees the GIL for its lifetime.
class FreeGil {
 public:
  FreeGil() : state_(PyEval_SaveThread()) {}
  ~FreeGil() {
    take_gil([this] { PyEval_RestoreThread(state_); });
  }
  FreeGil(const FreeGil&) = delete;
  FreeGil& operator=(const FreeGil&) = delete;

 private:
  PyThreadState* state_;
};

// An array of this shape with undefined content.
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

Array<int32_t> to_array(IdBuffer&& ids) {
  auto* kept = new IdBuffer(std::move(ids));
  py::capsule owner(kept, [](void* p) { delete static_cast<IdBuffer*>(p); });
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
  // Calls work(), which calls job.take. The GIL is held again when this returns or throws.
  template <class Work>
  void run(const Work& work) {
    struct HoldAgain {
      std::optional<FreeGil>& free_gil;
      ~HoldAgain() { free_gil.reset(); }
    } hold_again{free_gil_};
    work();
  }

  TextArgument first_;
  std::optional<TextArgument> second_;
  Job job;

 private:
  std::optional<FreeGil> free_gil_;  // the GIL is free from one job.take to the next
};

py::list encode_one(const Tokenizer& tokenizer, const py::object& text) {
  std::string_view view = utf8(text.ptr(), "text", {});
  py::object keep = text;
  if (tokenizer.wants_lowered() && !PyUnicode_IS_ASCII(text.ptr())) {
    keep = lowered(text.ptr());
    view = utf8(keep.ptr(), "text", {});
  }
  IdBuffer ids;
  {
    const FreeGil free_gil;
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
  IdBuffer ids;
  auto* o = offsets.mutable_data();
  auto* f = first_lens.mutable_data();
  call.run([&] { ids = encode_ragged(call.job, o, f); });
  return py::make_tuple(to_array(std::move(ids)), offsets, first_lens);
}

// str.lower(), from a thread that may not hold the GIL.
std::string lower_by_python(std::string_view text) {
  std::optional<py::gil_scoped_acquire> gil;
  take_gil([&gil] { gil.emplace(); });
  PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
  if (decoded == nullptr) throw py::error_already_set();
  const auto owned = py::reinterpret_steal<py::object>(decoded);
  const py::object low = lowered(owned.ptr());
  return std::string(utf8(low.ptr(), "text", {}));
}

// Asks a Python function (text, whether it is JSON) -> index or error, from a thread that may not hold the GIL.
std::function<Label(std::string_view, bool)> label_reader(const py::function& ask) {
  return [&ask](std::string_view text, bool json) {
    std::optional<py::gil_scoped_acquire> gil;
    take_gil([&gil] { gil.emplace(); });
    const py::object answer = ask(py::str(text.data(), text.size()), json);
    return py::isinstance<py::str>(answer) ? Label{-1, answer.cast<std::string>()} : Label{answer.cast<int64_t>(), {}};
  };
}

py::tuple encode_file_py(const Tokenizer& tokenizer, const std::string& path, bool json_lines, bool parse,
                         std::vector<std::string> label_names, const py::function& other_label, int64_t max_len,
                         const std::string& truncation, int threads) {
  check_max_len(max_len, true);
  RowOptions rows{tokenizer, static_cast<size_t>(max_len), rule_of(truncation), parse};
  if (tokenizer.wants_lowered()) rows.lower = lower_by_python;
  const ReadOptions read{json_lines, parse, std::move(label_names), label_reader(other_label), threads};
  EncodedFile file;
  {
    const FreeGil free_gil;
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
                        file.found.dropped, file.found.has_quotes);
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
    const FreeGil free_gil;
    spans = encode_spans(tokenizer, given.texts(), lowered.texts(), threads, o);
  }
  return py::make_tuple(to_array(std::move(spans.ids)), offsets, to_array(std::move(spans.starts)),
                        to_array(std::move(spans.ends)), to_array(std::move(spans.words)));
}

std::vector<Sequence> select(const Array<int32_t>& ids, const Array<int64_t>& offsets, const Array<int32_t>& first_lens,
                             const std::optional<Array<int64_t>>& index) {
  if (offsets.size() != first_lens.size() + 1) {
    throw py::value_error("offsets must have one element more than first_lens");
  }
  const SequenceStore store{ids.data(), offsets.data(), first_lens.data(), static_cast<size_t>(ids.size()),
                            static_cast<size_t>(first_lens.size())};
  return index ? select_sequences(store, index->data(), static_cast<size_t>(index->size()))
               : select_sequences(store, nullptr, store.count);
}

py::tuple gather_packed_py(const Array<int32_t>& ids, const Array<int64_t>& offsets, const Array<int32_t>& first_lens,
                           const Array<int64_t>& index) {
  const auto sequences = select(ids, offsets, first_lens, index);
  size_t total = 0, longest = 0;
  for (const Sequence& s : sequences) {
    total += s.length;
    longest = std::max(longest, s.length);
    if (total > INT32_MAX) throw py::value_error("a batch holds at most 2^31 - 1 tokens; take fewer sequences");
  }
  const auto tokens = static_cast<py::ssize_t>(total);
  Array<int32_t> input_ids(tokens), segments(tokens), positions(tokens);
  Array<int32_t> cu_seqlens(static_cast<py::ssize_t>(sequences.size()) + 1);
  int32_t *i = input_ids.mutable_data(), *s = segments.mutable_data(), *p = positions.mutable_data();
  int32_t* cu = cu_seqlens.mutable_data();
  {
    const FreeGil free_gil;
    gather_packed(sequences, i, s, p, cu);
  }
  return py::make_tuple(input_ids, segments, positions, cu_seqlens, longest);
}

py::tuple gather_padded_py(const Array<int32_t>& ids, const Array<int64_t>& offsets, const Array<int32_t>& first_lens,
                           const std::optional<Array<int64_t>>& index, int64_t pad, int64_t max_len) {
  if (max_len < 0) throw py::value_error("max_len must not be negative: " + std::to_string(max_len));
  const auto sequences = select(ids, offsets, first_lens, index);
  const auto width = static_cast<size_t>(max_len);
  for (const Sequence& s : sequences) {
    if (s.length > width) {
      throw py::value_error("a sequence of " + std::to_string(s.length) + " tokens does not fit into max_len " +
                            std::to_string(max_len));
    }
  }
  if (width != 0) check_memory(sequences.size(), 2 * sizeof(int64_t) * std::min(width, SIZE_MAX / 32));
  auto token_ids = uninitialized<int64_t>(std::array{sequences.size(), width});
  auto segments = uninitialized<int64_t>(std::array{sequences.size(), width});
  auto valid_lens = uninitialized<int64_t>(std::array{sequences.size()});
  int64_t *i = token_ids.mutable_data(), *s = segments.mutable_data(), *l = valid_lens.mutable_data();
  {
    const FreeGil free_gil;
    gather_padded(sequences, width, pad, i, s, l);
  }
  return py::make_tuple(token_ids, segments, valid_lens);
}

py::tuple read_pairs_py(const std::string& path, bool json_lines, bool parse, std::vector<std::string> label_names,
                        const py::function& other_label, int threads) {
  PairTable table;
  {
    const FreeGil free_gil;
    table = read_pairs(path, {json_lines, parse, std::move(label_names), label_reader(other_label), threads});
  }
  Array<uint8_t> arena(static_cast<py::ssize_t>(table.arena.size()),
                       reinterpret_cast<const uint8_t*>(table.arena.data()));
  py::list labels(table.labels.size());
  for (size_t i = 0; i < table.labels.size(); ++i) labels[i] = table.labels[i];
  return py::make_tuple(arena, to_array(table.premises.starts), to_array(table.premises.ends),
                        to_array(table.hypotheses.starts), to_array(table.hypotheses.ends), labels, table.found.dropped,
                        table.found.has_quotes);
}

}  // namespace

PYBIND11_MODULE(_text, m) {
  m.attr("torch_version") = BERTNLI_TORCH_VERSION;

  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const FormatError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const FileError& e) {
      errno = e.code().value();
      PyErr_SetFromErrnoWithFilename(PyExc_OSError, e.path.c_str());
    }
  });

  py::class_<Tokenizer>(m, "Tokenizer")
      .def("encode", &encode_one, py::arg("text"))
      .def("encode_ragged", &encode_ragged_py, py::arg("first"), py::arg("second"), py::arg("max_len"),
           py::arg("truncation"), py::arg("num_threads"))
      .def("encode_file", &encode_file_py, py::arg("path"), py::arg("json_lines"), py::arg("parse"),
           py::arg("label_names"), py::arg("other_label"), py::arg("max_len"), py::arg("truncation"),
           py::arg("num_threads"))
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
  m.def("read_pairs", &read_pairs_py, py::arg("path"), py::arg("json_lines"), py::arg("parse"), py::arg("label_names"),
        py::arg("other_label"), py::arg("num_threads"));
  m.def(
      "extract_text",
      [](const std::string& parse) {
        std::string out;
        extract_text(parse, out);
        return out;
      },
      py::arg("parse"));
  m.def("gather_packed", &gather_packed_py, py::arg("ids").noconvert(), py::arg("offsets").noconvert(),
        py::arg("first_lens").noconvert(), py::arg("index").noconvert());
  m.def("gather_padded", &gather_padded_py, py::arg("ids").noconvert(), py::arg("offsets").noconvert(),
        py::arg("first_lens").noconvert(), py::arg("index"), py::arg("pad"), py::arg("max_len"));
  bind_tables(m);
}

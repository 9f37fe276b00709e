// bertnli._ops: what concerns the module as a whole, and what inference calls from Python without the way through
// torch's dispatcher. Each operator has a file of its own: schema, checks, CPU implementation and gradient. bertnli/ops
// says what they do to fake tensors.
#include "encoder.h"
#include "kernels/dispatch.h"
#include "memory.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/Parallel.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

// How many threads at::parallel_for runs on.
int64_t cpu_threads() {
  std::vector<char> seen(size_t(at::get_num_threads()));
  at::parallel_for(0, int64_t(seen.size()), 1, [&](int64_t, int64_t) { seen[size_t(at::get_thread_num())] = 1; });
  return std::count(seen.begin(), seen.end(), 1);
}

// True if dicts[i][keys[i]] is values[i], or None for a key that is missing, for every i. It is asked before each
// inference, so it holds no references and makes no objects.
bool same_items(const py::list& dicts, const py::list& keys, const py::list& values) {
  const size_t count = dicts.size();
  if (keys.size() != count || values.size() != count) throw py::value_error("lists of different lengths");
  for (size_t i = 0; i < count; i++) {
    const auto index = Py_ssize_t(i);
    PyObject* found = PyDict_GetItemWithError(PyList_GET_ITEM(dicts.ptr(), index), PyList_GET_ITEM(keys.ptr(), index));
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if ((found ? found : Py_None) != PyList_GET_ITEM(values.ptr(), index)) return false;
  }
  return true;
}

}  // namespace

TORCH_LIBRARY(bertnli, m) {
  m.def("cpu_isa() -> str", bertnli::cpu_isa);
  m.def("set_cpu_isa(str name) -> ()", bertnli::set_cpu_isa);
  m.def("cpu_threads() -> int", cpu_threads);
  m.def("keep_memory(bool on) -> ()", bertnli::keep_memory);
  m.def("give_back_memory() -> ()", bertnli::give_back_memory);
}

// Importing the module loads the library, which registers the operators.
PYBIND11_MODULE(_ops, m) {
  m.def("cpu_multiplies_better", bertnli::cpu_multiplies_better, py::arg("bf16"));
  m.def("same_items", same_items);
  using bertnli::FusedEncoder;
  py::class_<FusedEncoder>(m, "FusedEncoder")
      .def(py::init(
          torch::wrap_pybind_function_no_gil([](const std::vector<at::Tensor>& tensors, int64_t heads, double eps,
                                                const std::string& activation, const std::string& precision) {
            return std::make_unique<FusedEncoder>(tensors, heads, eps, activation, precision);
          })))
      .def("is_current", &FusedEncoder::is_current)
      .def("features", torch::wrap_pybind_function_no_gil(&FusedEncoder::features))
      .def("outputs", torch::wrap_pybind_function_no_gil(&FusedEncoder::outputs));
}

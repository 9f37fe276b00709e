// bertnli._ops: the operators' schemas, and what inference calls from Python without the way through torch's
// dispatcher. Each operator registers its CPU implementation in a file of its own, autograd.cpp its gradient, and
// bertnli/ops.py what it does to fake tensors.
#include <Python.h>
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <string>
#include <utility>

namespace bertnli {
std::string cpu_isa();
void set_cpu_isa(const std::string& name);
int64_t cpu_threads();
bool cpu_multiplies_better(bool bf16);
void keep_memory(bool on);
void give_back_memory();
void define_encoder(pybind11::module_& m);
}  // namespace bertnli

TORCH_LIBRARY(bertnli, m) {
  m.def("cpu_isa() -> str", bertnli::cpu_isa);
  m.def("set_cpu_isa(str name) -> ()", bertnli::set_cpu_isa);
  m.def("cpu_threads() -> int", bertnli::cpu_threads);
  m.def("keep_memory(bool on) -> ()", bertnli::keep_memory);
  m.def("give_back_memory() -> ()", bertnli::give_back_memory);

  m.def(
      "varlen_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens, SymInt max_seqlen_q, "
      "SymInt max_seqlen, float dropout_p, float scale, Tensor? seed) -> (Tensor out, Tensor weight_sum, Tensor lse)");
  m.def(
      "varlen_attention_backward(Tensor dout, Tensor? dweight_sum, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor weight_sum, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens, SymInt max_seqlen_q, SymInt max_seqlen, "
      "float dropout_p, float scale, Tensor? seed) -> (Tensor dq, Tensor dk, Tensor dv)");
  m.def(
      "varlen_attention_packed(Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, float dropout_p, float scale, "
      "Tensor? seed) -> (Tensor out, Tensor weight_sum, Tensor lse)");
  m.def(
      "varlen_attention_packed_backward(Tensor dout, Tensor qkv, Tensor out, Tensor weight_sum, Tensor lse, "
      "Tensor cu_seqlens, SymInt max_seqlen, float dropout_p, float scale, Tensor? seed) -> Tensor");

  m.def(
      "add_norm(Tensor x, Tensor y, Tensor? y_bias, Tensor weight, Tensor bias, float eps, float dropout_p, "
      "Tensor? seed) -> (Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "add_norm_backward(Tensor dout, Tensor x, Tensor y, Tensor? y_bias, Tensor weight, Tensor bias, Tensor mean, "
      "Tensor rstd, float dropout_p, Tensor? seed) -> (Tensor dx, Tensor dy, Tensor dy_bias, Tensor dweight, "
      "Tensor dbias)");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("linear_backward(Tensor dout, Tensor? x, Tensor? weight) -> (Tensor dx, Tensor dweight)");
  m.def("bias_act(Tensor x, Tensor bias, str kind) -> Tensor");
  m.def("bias_act_backward(Tensor dout, Tensor x, Tensor bias, str kind) -> (Tensor dx, Tensor dbias)");
  m.def(
      "embed(Tensor token_table, Tensor segment_table, Tensor position_table, Tensor input_ids, Tensor segment_ids, "
      "Tensor positions, bool sparse) -> Tensor");
  m.def(
      "embed_backward(Tensor dout, Tensor input_ids, Tensor segment_ids, Tensor positions, SymInt token_rows, "
      "SymInt segment_rows, SymInt position_rows, bool token_wanted, bool segment_wanted, bool position_wanted) -> "
      "(Tensor dtoken, Tensor dsegment, Tensor dposition)");
  m.def(
      "embed_norm(Tensor token_table, Tensor segment_table, Tensor position_table, Tensor input_ids, "
      "Tensor segment_ids, Tensor positions, Tensor weight, Tensor bias, float eps, float dropout_p, Tensor? seed, "
      "ScalarType dtype, bool sparse) -> (Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "embed_norm_backward(Tensor dout, Tensor token_table, Tensor segment_table, Tensor position_table, "
      "Tensor input_ids, Tensor segment_ids, Tensor positions, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, "
      "float dropout_p, Tensor? seed) -> (Tensor dz, Tensor dweight, Tensor dbias)");

  m.def("gradient_norm(Tensor[] gradients) -> Tensor");
  m.def(
      "adam_step(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] copies, float size, float root, float shrink, float beta1, float beta2, float eps, float l2, "
      "float scale) -> ()");
  m.def(
      "adam_rows(Tensor(a!) parameter, Tensor rows, Tensor gradient, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
      "float size, float root, float shrink, float beta1, float beta2, float eps, float l2, float scale) -> ()");
  m.def(
      "adam_catch_up(Tensor(a!) parameter, Tensor? rows, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) last, "
      "Tensor steps, int steps_felt, float beta1, float beta2, float eps, float l2) -> ()");
}

namespace {

namespace py = pybind11;

// Where each tensor lies and how often it has been written to, and the instruction set of the kernels: all that packed
// weights depend on.
py::bytes state(const py::list& tensors) {
  std::string found = bertnli::cpu_isa();
  for (const py::handle x : tensors) {
    if (!THPVariable_Check(x.ptr())) throw py::type_error("state takes tensors");
    const at::Tensor& t = THPVariable_Unpack(x.ptr());
    const std::pair<const void*, int64_t> one{t.const_data_ptr(), t._version()};
    found.append(reinterpret_cast<const char*>(&one), sizeof one);
  }
  return found;
}

// Whether each dict of the list `owners` has `found` under its name, and no dict of `hooks` has anything. It runs
// before each inference, when the weights have driven all of these dicts out of the caches: they are fetched first,
// beside one another.
bool stand(const py::list& owners, const py::list& names, const py::list& found, const py::list& hooks) {
  const auto dict = [](const py::handle x) { return reinterpret_cast<PyDictObject*>(x.ptr()); };
  for (const py::list& dicts : {owners, hooks})
    for (const py::handle x : dicts) {
      if (!PyDict_Check(x.ptr())) throw py::type_error("stand takes dicts");
      __builtin_prefetch(&dict(x)->ma_values);
    }
  for (const py::handle x : owners) {
    __builtin_prefetch(dict(x)->ma_keys);
    __builtin_prefetch(reinterpret_cast<const char*>(dict(x)->ma_keys) + 64);
  }
  for (const py::handle x : hooks)
    if (PyDict_Size(x.ptr())) return false;
  for (size_t i = 0; i < owners.size(); i++) {
    PyObject* const item = PyDict_GetItemWithError(owners[i].ptr(), names[i].ptr());
    if (!item && PyErr_Occurred()) throw py::error_already_set();
    if ((item ? item : Py_None) != found[i].ptr()) return false;
  }
  return true;
}

}  // namespace

// Importing the module loads the library, which registers the operators above.
PYBIND11_MODULE(_ops, m) {
  m.def("state", torch::wrap_pybind_function(state));
  m.def("stand", stand);
  m.def("cpu_multiplies_better", bertnli::cpu_multiplies_better, py::arg("bf16"));
  bertnli::define_encoder(m);
}

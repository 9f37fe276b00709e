// bertnli._ops: the operators' schemas, and what inference calls from Python without the way through torch's
// dispatcher. Each operator registers its CPU implementation in a file of its own, autograd.cpp its gradient, and
// bertnli/ops.py what it does to fake tensors.
#include "encoder.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <memory>
#include <string>
#include <vector>

namespace bertnli {
std::string cpu_isa();
void set_cpu_isa(const std::string& name);
int64_t cpu_threads();
bool cpu_multiplies_better(bool bf16);
void keep_memory(bool on);
void give_back_memory();
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

namespace py = pybind11;

// Importing the module loads the library, which registers the operators above.
PYBIND11_MODULE(_ops, m) {
  m.def("cpu_multiplies_better", bertnli::cpu_multiplies_better, py::arg("bf16"));
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

// bertnli._ops: the operators' schemas. Each operator registers its CPU implementation in a file of its own, and
// bertnli/ops.py adds what it does to fake tensors and its gradient.
#include <Python.h>
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <string>

namespace bertnli {
std::string cpu_isa();
void set_cpu_isa(const std::string& name);
int64_t cpu_threads();
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

// Importing the module loads the library, which registers the operators above; the module itself is empty.
PyMODINIT_FUNC PyInit__ops() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_ops", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

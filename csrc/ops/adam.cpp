// Adam and AdamW of many tensors, and of the rows of a table that have a gradient: bertnli::adam_step, adam_rows and
// adam_catch_up, and bertnli::gradient_norm.
#include "checks.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/ops/empty.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <cmath>
#include <vector>

TORCH_LIBRARY_FRAGMENT(bertnli, m) {
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

namespace bertnli {
namespace {

using at::Tensor;
using at::TensorList;

constexpr int64_t kRun = 8192;  // elements that a thread takes at a time

Type checked_gradient(const Tensor& g) {
  const Type type = type_of(g, "Adam", "a gradient");
  TORCH_CHECK(g.device().is_cpu() && g.is_contiguous(), "a gradient must be contiguous and on the CPU; found ",
              g.device(), ", strides ", g.strides());
  return type;
}

void* checked(const Tensor& x, const char* name, at::IntArrayRef sizes, at::ScalarType dtype) {
  TORCH_CHECK(x.sizes() == sizes && x.scalar_type() == dtype && x.device().is_cpu() && x.is_contiguous(), name,
              " must be contiguous, on the CPU, of shape ", sizes, " and ", dtype, "; found ", x.device(), " ",
              x.sizes(), " ", x.scalar_type(), ", strides ", x.strides());
  return x.data_ptr();
}

// A parameter with its moments; `gradient_type` is that of its gradient.
Adam checked_adam(const Tensor& parameter, const Tensor& m, const Tensor& v, Type gradient_type) {
  const Type type = type_of(parameter, "Adam", "a parameter");
  TORCH_CHECK(type != Type::bf16, "a parameter must be float32 or float64; found bfloat16");
  TORCH_CHECK(gradient_type == type || (type == Type::f32 && gradient_type == Type::bf16),
              "a gradient must have its parameter's dtype, ", parameter.scalar_type(),
              ", or be bfloat16 where that is "
              "float32");
  Adam a{};
  a.parameter = checked(parameter, "a parameter", parameter.sizes(), parameter.scalar_type());
  a.m = checked(m, "exp_avg", parameter.sizes(), parameter.scalar_type());
  a.v = checked(v, "exp_avg_sq", parameter.sizes(), parameter.scalar_type());
  return a;
}

// ---- the gradients' norm ----

Tensor gradient_norm(TensorList gradients) {
  struct Part {
    const void* gradient;
    int64_t begin, end;
    double (*squares)(const void*, int64_t, int64_t);
    double sum = 0;
  };
  std::vector<Part> parts;
  for (const Tensor& g : gradients) {
    const Type type = checked_gradient(g);
    const auto squares = kernels().adam[type][type == Type::f64 ? type : Type::f32].squares;
    for (int64_t begin = 0; begin < g.numel(); begin += kRun)
      parts.push_back({g.const_data_ptr(), begin, std::min(g.numel(), begin + kRun), squares});
  }
  share(int64_t(parts.size()), kPerMove * kRun, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      Part& p = parts[i];
      p.sum = p.squares(p.gradient, p.begin, p.end);
    }
  });
  double total = 0;  // in the parts' order, whatever the number of threads
  for (const Part& p : parts) total += p.sum;
  const Tensor norm = at::empty({}, at::dtype(at::kDouble));
  *norm.data_ptr<double>() = std::sqrt(total);
  return norm;
}

// ---- whole tensors ----

void adam_step(TensorList parameters, TensorList gradients, TensorList ms, TensorList vs, TensorList copies,
               double size, double root, double shrink, double beta1, double beta2, double eps, double l2,
               double scale) {
  const size_t n = parameters.size();
  TORCH_CHECK(gradients.size() == n && ms.size() == n && vs.size() == n && copies.size() == n,
              "parameters, gradients, exp_avgs, exp_avg_sqs and copies must be equally many; found ", n, ", ",
              gradients.size(), ", ", ms.size(), ", ", vs.size(), " and ", copies.size());
  const AdamStep step{size, root, shrink};
  struct Part {
    size_t tensor;
    int64_t begin, end;
  };
  std::vector<Adam> calls;
  std::vector<AdamKernels> by_tensor;
  std::vector<Part> parts;
  for (size_t i = 0; i < n; i++) {
    const Tensor &p = parameters[i], &g = gradients[i];
    const Type type = checked_gradient(g);
    TORCH_CHECK(g.sizes() == p.sizes(), "a gradient must have its parameter's shape ", p.sizes(), "; found ",
                g.sizes());
    Adam a = checked_adam(p, ms[i], vs[i], type);
    a.gradient = g.const_data_ptr();
    if (copies[i].numel()) {
      TORCH_CHECK(p.scalar_type() == at::kFloat, "only a float32 parameter can have a bfloat16 copy");
      a.copy = checked(copies[i], "a copy", p.sizes(), at::kBFloat16);
    }
    a.beta1 = beta1, a.beta2 = beta2, a.eps = eps, a.l2 = l2, a.scale = scale;
    a.steps = &step;
    calls.push_back(a);
    by_tensor.push_back(kernels().adam[type][type_of(p, "Adam", "a parameter")]);
    for (int64_t begin = 0; begin < p.numel(); begin += kRun)
      parts.push_back({i, begin, std::min(p.numel(), begin + kRun)});
  }
  share(int64_t(parts.size()), kPerElement * kRun, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      by_tensor[parts[i].tensor].adam(calls[parts[i].tensor], parts[i].begin, parts[i].end);
  });
}

// ---- rows ----

// A copy: no other thread can change what was checked.
std::vector<int32_t> checked_rows(const Tensor& rows, int64_t count) {
  TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == at::kInt && rows.device().is_cpu() && rows.is_contiguous(),
              "rows must be contiguous int32 [n] on the CPU; found ", rows.device(), " ", rows.dtype(), " ",
              rows.sizes());
  const int32_t* begin = rows.const_data_ptr<int32_t>();
  const std::vector<int32_t> at(begin, begin + rows.numel());
  for (const int32_t row : at)
    TORCH_CHECK_INDEX(row >= 0 && row < count, "row ", row, " lies outside the table's ", count);
  return at;
}

// One step of the rows (each once), whose gradients are given. They have to be up to date.
void adam_rows(const Tensor& parameter, const Tensor& rows, const Tensor& gradient, const Tensor& m, const Tensor& v,
               double size, double root, double shrink, double beta1, double beta2, double eps, double l2,
               double scale) {
  const Type type = checked_gradient(gradient);
  TORCH_CHECK(parameter.dim() == 2, "the parameter must have shape [rows, width]; found ", parameter.sizes());
  const int64_t width = parameter.size(1), count = rows.numel();
  TORCH_CHECK(gradient.dim() == 2 && gradient.size(0) == count && gradient.size(1) == width,
              "the gradient must have shape [", count, ", ", width, "]; found ", gradient.sizes());
  const AdamStep step{size, root, shrink};
  Adam a = checked_adam(parameter, m, v, type);
  const std::vector<int32_t> at = checked_rows(rows, parameter.size(0));
  a.beta1 = beta1, a.beta2 = beta2, a.eps = eps, a.l2 = l2, a.scale = scale;
  a.steps = &step;
  const auto step_row = kernels().adam[type][type_of(parameter, "Adam", "a parameter")].adam;
  const size_t element = parameter.element_size(), gradient_element = gradient.element_size();
  share(count, kPerElement * double(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      Adam row = a;
      const size_t offset = size_t(at[i]) * width * element;
      row.parameter = (char*)a.parameter + offset;
      row.m = (char*)a.m + offset;
      row.v = (char*)a.v + offset;
      row.gradient = (const char*)gradient.const_data_ptr() + size_t(i) * width * gradient_element;
      step_row(row, 0, width);
    }
  });
}

// Brings rows (all where none are given; repeated ones count once) up to the last of `steps`, [n, 3] of AdamStep, as if
// each had had a gradient of zero since step last[row].
void adam_catch_up(const Tensor& parameter, const std::optional<Tensor>& rows, const Tensor& m, const Tensor& v,
                   const Tensor& last, const Tensor& steps, int64_t steps_felt, double beta1, double beta2, double eps,
                   double l2) {
  TORCH_CHECK(parameter.dim() == 2, "the parameter must have shape [rows, width]; found ", parameter.sizes());
  const Type type = type_of(parameter, "Adam", "a parameter");
  Adam a = checked_adam(parameter, m, v, type);
  const int64_t count = parameter.size(0), width = parameter.size(1), now = steps.size(0);
  int32_t* done = (int32_t*)checked(last, "last", {count}, at::kInt);
  TORCH_CHECK(steps.dim() == 2 && steps.size(1) == 3, "steps must have shape [n, 3]; found ", steps.sizes());
  a.steps = (const AdamStep*)checked(steps, "steps", steps.sizes(), at::kDouble);
  a.beta1 = beta1, a.beta2 = beta2, a.eps = eps, a.l2 = l2;
  a.steps_felt = steps_felt;
  const auto skip = kernels().adam[type][type].skipped;
  TORCH_CHECK(steps_felt >= 0, "steps_felt must not be negative; found ", steps_felt);
  struct Row {
    int64_t row, since;
  };
  std::vector<Row> late;
  const auto take = [&](int64_t row) {
    const int32_t since = done[row];
    TORCH_CHECK(since >= 0 && since <= now, "last says that row ", row, " has done ", since, " of ", now, " steps");
    if (since == now) return;
    late.push_back({row, since});
    done[row] = int32_t(now);
  };
  if (rows.has_value()) {
    for (const int32_t row : checked_rows(*rows, count)) take(row);
  } else {
    for (int64_t row = 0; row < count; row++) take(row);
  }
  share(int64_t(late.size()), kPerElement * 8.0 * double(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) skip(a, late[i].row, width, late[i].since, now);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("gradient_norm", gradient_norm);
  m.impl("adam_step", adam_step);
  m.impl("adam_rows", adam_rows);
  m.impl("adam_catch_up", adam_catch_up);
}

}  // namespace bertnli

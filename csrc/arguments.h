// Argument checks of the op, the same for CPU and CUDA. A message names the argument, what it is and what to give.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "problem.h"

namespace sparse_detr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

inline std::string listed(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis)
    text += (axis ? ", " : "") + std::to_string(tensor.size(axis));
  return text + "]";
}

inline const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    default: return "a type that it does not know";
  }
}

inline Element element(const char* name, ScalarType type) {
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
          type == ScalarType::Half,
      "deformable_attention: ", name, " has ", type_name(type), "; give float32, float64, bfloat16 or float16");
  return type == ScalarType::Float    ? Element::float32
      : type == ScalarType::Double    ? Element::float64
      : type == ScalarType::BFloat16 ? Element::bfloat16
                                      : Element::float16;
}

inline void check_like(const char* name, const Tensor& tensor, const Tensor& value, std::vector<int64_t> sizes) {
  std::string wanted = "[";
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    wanted += (axis ? ", " : "") + std::to_string(sizes[axis]);
    same = same && tensor.size(static_cast<int64_t>(axis)) == sizes[axis];
  }
  STD_TORCH_CHECK(same, "deformable_attention: ", name, " has shape ", listed(tensor), "; give ", wanted, "]");
  STD_TORCH_CHECK(
      tensor.is_cpu() == value.is_cpu() && tensor.get_device_index() == value.get_device_index(),
      "deformable_attention: ", name, " is on another device than value; put both on one");
  STD_TORCH_CHECK(tensor.is_contiguous(), "deformable_attention: ", name, " is not contiguous; call .contiguous()");
}

// Sizes and pointers of a call whose arguments fit together; raises otherwise. `references` is absent in the unfused
// form, in which `positions` are locations and `weights` come after the softmax. Points into all of them.
inline Problem checked(
    const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references, const Tensor& positions,
    const Tensor& weights) {
  STD_TORCH_CHECK(
      value.dim() == 4, "deformable_attention: value has shape ", listed(value), "; give [B, T, M, D]");
  STD_TORCH_CHECK(value.is_contiguous(), "deformable_attention: value is not contiguous; call .contiguous()");
  STD_TORCH_CHECK(
      !shapes.empty() && shapes.size() % 2 == 0,
      "deformable_attention: shapes has ", shapes.size(), " numbers; give height and width of every level");
  const char* const positions_name = references ? "offsets" : "locations";
  const char* const weights_name = references ? "logits" : "weights";
  STD_TORCH_CHECK(
      positions.dim() == 6, "deformable_attention: ", positions_name, " has shape ", listed(positions),
      "; give [B, Q, M, L, P, 2]");
  Problem p{};
  p.shapes = shapes.data();
  p.images = value.size(0), p.tokens = value.size(1), p.heads = value.size(2), p.channels = value.size(3);
  p.queries = positions.size(1), p.levels = static_cast<int64_t>(shapes.size()) / 2, p.points = positions.size(4);
  int64_t tokens = 0;
  for (int64_t level = 0; level < p.levels; ++level) {
    const int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    STD_TORCH_CHECK(
        height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24),
        "deformable_attention: shapes say ", height, " x ", width, " for level ", level, "; give 1 to 2^24 - 1");
    tokens += height * width;
  }
  STD_TORCH_CHECK(
      tokens == p.tokens, "deformable_attention: shapes hold ", tokens, " tokens, value holds ", p.tokens);
  STD_TORCH_CHECK(
      p.tokens * p.heads * p.channels < (int64_t{1} << 31),
      "deformable_attention: value holds ", p.tokens * p.heads * p.channels,
      " numbers an image; give fewer than 2^31 (batches may be larger)");
  STD_TORCH_CHECK(
      p.levels * p.points <= 4096, "deformable_attention: ", p.levels * p.points,
      " samples a query and head; give at most 4096");
  if (references) {
    p.reference_size = references->dim() == 4 ? references->size(3) : 0;
    STD_TORCH_CHECK(
        p.reference_size == 2 || p.reference_size == 4,
        "deformable_attention: references has shape ", listed(*references), "; give [B, Q, L, 2 or 4]");
    check_like("references", *references, value, {p.images, p.queries, p.levels, p.reference_size});
  }
  check_like(positions_name, positions, value, {p.images, p.queries, p.heads, p.levels, p.points, 2});
  check_like(weights_name, weights, value, {p.images, p.queries, p.heads, p.levels, p.points});

  p.value_type = element("value", value.scalar_type());
  p.sample_type = element(positions_name, positions.scalar_type());
  const ScalarType exact = p.value_type == Element::float64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      positions.scalar_type() == exact || (references && positions.scalar_type() == value.scalar_type()),
      "deformable_attention: ", positions_name, " has ", type_name(positions.scalar_type()), " beside a value of ",
      type_name(value.scalar_type()), "; give ", type_name(exact));
  STD_TORCH_CHECK(
      weights.scalar_type() == positions.scalar_type(), "deformable_attention: ", weights_name, " has ",
      type_name(weights.scalar_type()), ", ", positions_name, " ", type_name(positions.scalar_type()),
      "; give one type");
  STD_TORCH_CHECK(
      !references || references->scalar_type() == exact, "deformable_attention: references has ",
      type_name(references ? references->scalar_type() : exact), "; give ", type_name(exact));
  p.value = value.const_data_ptr();
  p.references = references ? references->const_data_ptr() : nullptr;
  p.positions = positions.const_data_ptr();
  p.weights = weights.const_data_ptr();
  return p;
}

inline Tensor output_for(const Tensor& value, Problem& p) {
  Tensor output = torch::stable::new_empty(value, {p.images, p.queries, p.heads * p.channels});
  p.output = output.mutable_data_ptr();
  return output;
}

inline void take_gradient(const Tensor& gradient, const Tensor& value, Problem& p) {
  check_like("gradient", gradient, value, {p.images, p.queries, p.heads * p.channels});
  STD_TORCH_CHECK(
      gradient.scalar_type() == value.scalar_type(), "deformable_attention: gradient has ",
      type_name(gradient.scalar_type()), ", value ", type_name(value.scalar_type()), "; give that type");
  p.output_gradient = gradient.const_data_ptr();
}

// Gradients of positions and weights, for a kernel to fill; zeros where it has nothing to do.
inline std::pair<Tensor, Tensor> sample_gradients_for(const Tensor& positions, const Tensor& weights, Problem& p) {
  Tensor to_positions = torch::stable::empty_like(positions), to_weights = torch::stable::empty_like(weights);
  if (empty(p)) torch::stable::zero_(to_positions), torch::stable::zero_(to_weights);
  p.position_gradient = to_positions.mutable_data_ptr();
  p.weight_gradient = to_weights.mutable_data_ptr();
  return {to_positions, to_weights};
}

// A tensor without entries, for a gradient that is not wanted.
inline Tensor nothing_like(const Tensor& tensor) { return torch::stable::new_empty(tensor, {0}); }

}  // namespace sparse_detr

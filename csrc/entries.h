// The four functions of the schema, made from one forward and one backward of a device.
#pragma once

#include "arguments.h"

namespace sparse_detr {

// `references` is null in the unfused form.
using Forward = Tensor(
    const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references, const Tensor& positions,
    const Tensor& weights);
using Backward = Gradients(
    const Tensor& gradient, const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references,
    const Tensor& positions, const Tensor& weights, bool for_value, bool for_samples);

// Arguments come by value: the dispatcher hands over what it unpacked.
template <Forward* forward, Backward* backward>
struct Entries {
  static Tensor unfused(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
    return forward(value, shapes, nullptr, locations, weights);
  }

  static Gradients unfused_backward(
      Tensor gradient, Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights, bool for_value,
      bool for_samples) {
    return backward(gradient, value, shapes, nullptr, locations, weights, for_value, for_samples);
  }

  static Tensor fused(Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits) {
    return forward(value, shapes, &references, offsets, logits);
  }

  static Gradients fused_backward(
      Tensor gradient, Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits,
      bool for_value, bool for_samples) {
    return backward(gradient, value, shapes, &references, offsets, logits, for_value, for_samples);
  }

  // In the body of STABLE_TORCH_LIBRARY_IMPL, whose `m` is the library.
  template <class Library>
  static void implement(Library& m) {
    m.impl("deformable_attention", TORCH_BOX(&unfused));
    m.impl("deformable_attention_backward", TORCH_BOX(&unfused_backward));
    m.impl("fused_deformable_attention", TORCH_BOX(&fused));
    m.impl("fused_deformable_attention_backward", TORCH_BOX(&fused_backward));
  }
};

}  // namespace sparse_detr

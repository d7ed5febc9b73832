// Sizes and raw pointers of a call, for a kernel. No torch in here, so that kernels build and can be tested without it.
#pragma once

#include <cstdint>

namespace sparse_detr {

enum class Element : int32_t { float32, float64, bfloat16, float16 };

// Axes are B images, T tokens, M heads, D channels a head, Q queries, L levels, P points; all tensors are contiguous.
struct Problem {
  int64_t images, tokens, heads, channels, queries, levels, points;
  const int64_t* shapes;  // [L, 2]: height, width
  Element value_type;     // of value, output and their gradients
  Element sample_type;    // of offsets and logits (locations and weights in the unfused form) and their gradients

  const void* value;       // [B, T, M, D]
  const void* references;  // [B, Q, L, 2 or 4], float (double where value is double); null in the unfused form
  int64_t reference_size;  // 0 (unfused), 2 or 4
  const void* positions;   // [B, Q, M, L, P, 2]: offsets, or locations in the unfused form
  const void* weights;     // [B, Q, M, L, P]: logits, or weights in the unfused form

  void* output;                 // forward: [B, Q, M x D]
  const void* output_gradient;  // backward, the same shape
  void* value_gradient;         // null where not wanted; zeros where `accumulates_in_place` says so
  void* position_gradient;      // null together with weight_gradient, where not wanted
  void* weight_gradient;
};

// Whether no sample touches any output: then outputs and gradients are zeros, as far as they have entries.
inline bool empty(const Problem& p) {
  return p.images == 0 || p.queries == 0 || p.heads == 0 || p.channels == 0 || p.points == 0;
}

// One instruction set's kernels for the CPU. Tasks write to memory of their own, so that the result is the same, bit by
// bit, in any order and however many run at once.
struct CpuKernels {
  const char* name;
  int64_t (*unit)(Element);  // channels a head should be a multiple of this for speed
  bool (*accumulates_in_place)(const Problem&);

  int64_t (*forward_tasks)(const Problem&, int64_t threads);
  bool (*forward)(const Problem&, int64_t threads, int64_t begin, int64_t end);  // false: no memory
  int64_t (*sample_gradient_tasks)(const Problem&, int64_t threads);
  bool (*sample_gradient)(const Problem&, int64_t threads, int64_t begin, int64_t end);
  int64_t (*value_gradient_tasks)(const Problem&, int64_t threads);
  bool (*value_gradient)(const Problem&, int64_t threads, int64_t begin, int64_t end);
};

}  // namespace sparse_detr

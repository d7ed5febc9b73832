// A group of lanes computes the samples of one query and head together, each sample once, into shared memory.
#pragma once

#include "../bilinear.h"
#include "../problem.h"
#include "packs.cuh"

namespace sparse_detr {

constexpr int most_levels = 16;

// Sizes and pointers of a launch: a kernel's argument, in constant memory.
template <class T, class S>
struct Launch {
  int64_t groups;  // B x Q x M
  int32_t queries, heads, channels, levels, points, reference_size;
  int64_t image_stride;  // T x M x D
  int32_t lanes;         // of a group: a power of two, at most 32
  int32_t height[most_levels], width[most_levels], start[most_levels];
  const T* value;
  const float* references;
  const S* positions;
  const S* weights;
  T* output;
  const T* output_gradient;
  float* value_gradient;  // sums in float32 whatever T is; null where not wanted
  S* position_gradient;   // null where not wanted
  S* weight_gradient;
};

// Lanes of one group.
struct Group {
  int64_t row;  // (image x Q + query) x M + head; past the last group, that of the last
  bool active;
  int lane, lanes;

  template <class L>
  __device__ __forceinline__ explicit Group(const L& launch) : lanes(launch.lanes) {
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t group = thread / lanes;
    lane = threadIdx.x & (lanes - 1);
    active = group < launch.groups;
    row = active ? group : launch.groups - 1;
  }
  __device__ __forceinline__ int in_block() const { return threadIdx.x / lanes; }
  __device__ __forceinline__ float sum(float x) const {
    for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
  }
  __device__ __forceinline__ float largest(float x) const {
    for (int distance = lanes / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
    return x;
  }
};

struct Sample {
  Axis<float> x, y;
  float weight, x_scale, y_scale;
};

// The softmax's largest logit and the inverse of its denominator.
template <class T, class S>
__device__ __forceinline__ float2 softmax_terms(const Launch<T, S>& launch, const Group& group) {
  if (launch.reference_size == 0) return make_float2(0.f, 1.f);
  const int samples = launch.levels * launch.points;
  const S* logits = launch.weights + group.row * samples;
  float largest = -INFINITY, sum = 0.f;
  for (int s = group.lane; s < samples; s += group.lanes) largest = fmaxf(largest, to_float(logits[s]));
  largest = group.largest(largest);
  for (int s = group.lane; s < samples; s += group.lanes) sum += softmax_term(to_float(logits[s]), largest);
  return make_float2(largest, 1.f / group.sum(sum));
}

template <class T, class S>
__device__ __forceinline__ Sample sample_at(const Launch<T, S>& launch, int64_t row, int s, float2 softmax) {
  const int64_t index = row * (launch.levels * launch.points) + s;
  const int level = s / launch.points;
  const float width = static_cast<float>(launch.width[level]), height = static_cast<float>(launch.height[level]);
  const float position[2] = {to_float(launch.positions[2 * index]), to_float(launch.positions[2 * index + 1])};
  const float weight = to_float(launch.weights[index]);
  Sample sample;
  if (launch.reference_size == 0) {
    sample.weight = weight;
    sample.x_scale = width, sample.y_scale = height;
    sample.x = around(pixel_of_location(position[0], width), width);
    sample.y = around(pixel_of_location(position[1], height), height);
    return sample;
  }
  sample.weight = softmax_term(weight, softmax.x) * softmax.y;
  sample.x_scale = 1.f, sample.y_scale = 1.f;
  const float* reference = launch.references + (row / launch.heads * launch.levels + level) * launch.reference_size;
  if (launch.reference_size == 4) {
    const float half_over_points = 0.5f / static_cast<float>(launch.points);
    sample.x_scale = pixels_per_offset(reference[2], width, half_over_points);
    sample.y_scale = pixels_per_offset(reference[3], height, half_over_points);
  }
  sample.x = around(pixel_of_offset(reference[0], position[0] * sample.x_scale, width), width);
  sample.y = around(pixel_of_offset(reference[1], position[1] * sample.y_scale, height), height);
  return sample;
}

// Elements from the image's first to the rows of this head's four corners; fewer than 2^31, as the op has checked.
template <class T, class S>
__device__ __forceinline__ int4 corners_of(const Launch<T, S>& launch, int head, int s, const Sample& sample) {
  const int level = s / launch.points, token = launch.heads * launch.channels;
  const int top = launch.start[level] + sample.y.low * launch.width[level];
  const int bottom = launch.start[level] + sample.y.high * launch.width[level];
  const int first = head * launch.channels;
  return make_int4(
      (top + sample.x.low) * token + first, (top + sample.x.high) * token + first,
      (bottom + sample.x.low) * token + first, (bottom + sample.x.high) * token + first);
}

__device__ __forceinline__ int corner(const int4& corners, int number) {
  return number == 0 ? corners.x : number == 1 ? corners.y : number == 2 ? corners.z : corners.w;
}

}  // namespace sparse_detr

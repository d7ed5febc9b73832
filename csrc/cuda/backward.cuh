// The backward on a GPU: a group of lanes for each query and head.
//
// Every lane multiplies its channels with those of the four corners and applies the gradient of one sample, which is
// linear, to its part, so that the group reduces three numbers a sample instead of four. The value's gradient is added
// atomically, in an order that differs from run to run.
#pragma once

#include "samples.cuh"

namespace sparse_detr {

struct BackwardSample {
  int4 corners;
  Sample sample;
  float gradient;  // of the weight
};

template <class T, class S, int channels_a_lane>
__global__ void __launch_bounds__(128) backward_kernel(const __grid_constant__ Launch<T, S> launch) {
  extern __shared__ int4 shared[];
  const Group group(launch);
  const int samples = launch.levels * launch.points, head = static_cast<int>(group.row % launch.heads);
  BackwardSample* mine = reinterpret_cast<BackwardSample*>(shared) + group.in_block() * samples;
  const float2 softmax = softmax_terms(launch, group);
  for (int s = group.lane; s < samples; s += group.lanes) {
    mine[s].sample = sample_at(launch, group.row, s, softmax);
    mine[s].corners = corners_of(launch, head, s, mine[s].sample);
  }
  __syncwarp();
  const int64_t first = group.row / launch.heads / launch.queries * launch.image_stride;
  const T* value = launch.value + first;
  const T* given = launch.output_gradient + group.row * launch.channels;
  const bool to_value = launch.value_gradient != nullptr && group.active;
  const bool to_samples = launch.position_gradient != nullptr;
  float weighted = 0.f;
  for (int s = 0; s < samples; ++s) {
    const int4 corners = mine[s].corners;
    const Sample sample = mine[s].sample;
    const CornerWeights<float> weights = corner_weights(sample.x, sample.y, sample.weight);
    float dot[4] = {};
    for (int d = group.lane * channels_a_lane; d < launch.channels; d += group.lanes * channels_a_lane) {
      float gradient[channels_a_lane];
      load<T, channels_a_lane>(given + d, gradient);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (to_value && weights.at[c] != 0.f)
          add_atomically<channels_a_lane>(
              launch.value_gradient + first + corner(corners, c) + d, gradient, weights.at[c]);
        if (to_samples) {
          float row[channels_a_lane];
          load<T, channels_a_lane>(value + corner(corners, c) + d, row);
#pragma unroll
          for (int i = 0; i < channels_a_lane; ++i) dot[c] += row[i] * gradient[i];
        }
      }
    }
    if (!to_samples) continue;
    const SampleGradient<float> part = sample_gradient(sample.x, sample.y, sample.weight, dot);
    const float x = group.sum(part.x), y = group.sum(part.y), weight = group.sum(part.weight);
    weighted += sample.weight * weight;
    if (group.lane == s % group.lanes) {
      mine[s].gradient = weight;
      S* position = launch.position_gradient + 2 * (group.row * samples + s);
      if (group.active) {
        position[0] = from_float<S>(x * sample.x_scale);
        position[1] = from_float<S>(y * sample.y_scale);
      }
    }
  }
  if (!to_samples || !group.active) return;
  for (int s = group.lane; s < samples; s += group.lanes) {  // each lane reads what it wrote itself
    float gradient = mine[s].gradient;
    if (launch.reference_size != 0) gradient = softmax_gradient(mine[s].sample.weight, gradient, weighted);
    launch.weight_gradient[group.row * samples + s] = from_float<S>(gradient);
  }
}

// Sums in float32 to the value's type.
template <class T>
__global__ void convert_kernel(const float* from, T* to, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = from_float<T>(from[i]);
}

}  // namespace sparse_detr

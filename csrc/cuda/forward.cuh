// The forward on a GPU: a group of lanes for each query and head, 16 bytes of channels a lane.
#pragma once

#include "samples.cuh"

namespace sparse_detr {

struct ForwardSample {
  int4 corners;
  float4 weights;
};

template <class T, class S, int channels_a_lane>
__global__ void __launch_bounds__(128) forward_kernel(const __grid_constant__ Launch<T, S> launch) {
  extern __shared__ int4 shared[];
  const Group group(launch);
  const int samples = launch.levels * launch.points, head = static_cast<int>(group.row % launch.heads);
  ForwardSample* mine = reinterpret_cast<ForwardSample*>(shared) + group.in_block() * samples;
  const float2 softmax = softmax_terms(launch, group);
  for (int s = group.lane; s < samples; s += group.lanes) {
    const Sample sample = sample_at(launch, group.row, s, softmax);
    const CornerWeights<float> weights = corner_weights(sample.x, sample.y, sample.weight);
    mine[s].corners = corners_of(launch, head, s, sample);
    mine[s].weights = make_float4(weights.at[0], weights.at[1], weights.at[2], weights.at[3]);
  }
  __syncwarp();
  const T* value = launch.value + group.row / launch.heads / launch.queries * launch.image_stride;
  for (int d = group.lane * channels_a_lane; d < launch.channels; d += group.lanes * channels_a_lane) {
    float sum[channels_a_lane] = {};
#pragma unroll 4
    for (int s = 0; s < samples; ++s) {
      const int4 corners = mine[s].corners;
      const float4 weights = mine[s].weights;
      float row[4][channels_a_lane];
#pragma unroll
      for (int c = 0; c < 4; ++c) load<T, channels_a_lane>(value + corner(corners, c) + d, row[c]);
#pragma unroll
      for (int i = 0; i < channels_a_lane; ++i)
        sum[i] += weights.x * row[0][i] + weights.y * row[1][i] + weights.z * row[2][i] + weights.w * row[3][i];
    }
    if (group.active) store<T, channels_a_lane>(launch.output + group.row * launch.channels + d, sum);
  }
}

}  // namespace sparse_detr

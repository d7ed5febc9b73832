// The arithmetic of a launch: kernel, lanes, threads, blocks, bytes. No torch in here and no call to a GPU, so that
// tests/csrc/emulate.cpp runs the kernels with the same numbers on a CPU.
#pragma once

#include <cstdint>
#include <string>

#include "backward.cuh"
#include "forward.cuh"

namespace sparse_detr {

constexpr int threads_a_block = 128;
constexpr int64_t most_samples = 96;  // L x P
constexpr int64_t most_shared_bytes = 48 * 1024;

// So that a group of 32 lanes always has room, and `grid_of` needs no wider one.
static_assert(most_samples * sizeof(ForwardSample) <= most_shared_bytes);
static_assert(most_samples * sizeof(BackwardSample) <= most_shared_bytes);

// Reason why the kernels cannot take a problem; empty where they can.
inline std::string refusal(const Problem& p) {
  if (p.levels > most_levels || p.levels * p.points > most_samples)
    return std::to_string(p.levels) + " levels of " + std::to_string(p.points) + " points on CUDA; give at most " +
        std::to_string(most_levels) + " levels and " + std::to_string(most_samples) +
        " samples, or set SPARSE_DETR_OP=reference";
  if (p.queries >= int64_t{1} << 31) return std::to_string(p.queries) + " queries on CUDA; give fewer than 2^31";
  return "";
}

template <class T, class S>
Launch<T, S> launch_of(const Problem& p) {
  Launch<T, S> launch{};
  launch.groups = p.images * p.queries * p.heads;
  launch.queries = static_cast<int32_t>(p.queries), launch.heads = static_cast<int32_t>(p.heads);
  launch.channels = static_cast<int32_t>(p.channels), launch.levels = static_cast<int32_t>(p.levels);
  launch.points = static_cast<int32_t>(p.points), launch.reference_size = static_cast<int32_t>(p.reference_size);
  launch.image_stride = p.tokens * p.heads * p.channels;
  int32_t start = 0;
  for (int64_t level = 0; level < p.levels; ++level) {
    launch.height[level] = static_cast<int32_t>(p.shapes[2 * level]);
    launch.width[level] = static_cast<int32_t>(p.shapes[2 * level + 1]);
    launch.start[level] = start;
    start += launch.height[level] * launch.width[level];
  }
  launch.value = static_cast<const T*>(p.value);
  launch.references = static_cast<const float*>(p.references);
  launch.positions = static_cast<const S*>(p.positions);
  launch.weights = static_cast<const S*>(p.weights);
  launch.output = static_cast<T*>(p.output);
  launch.output_gradient = static_cast<const T*>(p.output_gradient);
  launch.value_gradient = static_cast<float*>(p.value_gradient);
  launch.position_gradient = static_cast<S*>(p.position_gradient);
  launch.weight_gradient = static_cast<S*>(p.weight_gradient);
  return launch;
}

struct Grid {
  int32_t lanes;           // of a group
  int threads;             // of a block
  int64_t groups_a_block;  // threads / lanes
  int64_t blocks;          // 2^31 - 1 at most, or the launch fails
  int64_t shared_bytes;    // of a block
};

inline Grid grid_of(int64_t groups, int64_t channels, int channels_a_lane, int64_t bytes_a_group) {
  Grid grid{1, threads_a_block, 0, 0, 0};
  while (grid.lanes < 32 && grid.lanes * channels_a_lane < channels) grid.lanes *= 2;
  while (grid.threads > 32 && grid.threads / grid.lanes * bytes_a_group > most_shared_bytes) grid.threads /= 2;
  while (grid.threads / grid.lanes * bytes_a_group > most_shared_bytes) grid.lanes *= 2;  // fewer groups, lanes idle
  grid.groups_a_block = grid.threads / grid.lanes;
  grid.blocks = (groups + grid.groups_a_block - 1) / grid.groups_a_block;
  grid.shared_bytes = grid.groups_a_block * bytes_a_group;
  return grid;
}

template <class T>
constexpr int wide = 16 / static_cast<int>(sizeof(T));

// Whether lanes may take 16 bytes of channels at once. `row` is the other tensor with channels: output or its gradient.
template <class T>
bool by_packs(const Problem& p, const void* row) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return p.channels % wide<T> == 0 && aligned(p.value) && aligned(row) && aligned(p.value_gradient);
}

// All three call `start(kernel, launch, grid)`.
template <class T, class S, class Start>
void start_either(
    const Problem& p, const void* row, size_t bytes_a_sample, void (*in_packs)(const Launch<T, S>),
    void (*one_by_one)(const Launch<T, S>), const Start& start) {
  Launch<T, S> launch = launch_of<T, S>(p);
  const bool packs = by_packs<T>(p, row);
  const int64_t bytes = p.levels * p.points * static_cast<int64_t>(bytes_a_sample);
  const Grid grid = grid_of(launch.groups, p.channels, packs ? wide<T> : 1, bytes);
  launch.lanes = grid.lanes;
  start(packs ? in_packs : one_by_one, launch, grid);
}

template <class T, class S, class Start>
void start_forward(const Problem& p, const Start& start) {
  start_either<T, S>(
      p, p.output, sizeof(ForwardSample), forward_kernel<T, S, wide<T>>, forward_kernel<T, S, 1>, start);
}

template <class T, class S, class Start>
void start_backward(const Problem& p, const Start& start) {
  start_either<T, S>(
      p, p.output_gradient, sizeof(BackwardSample), backward_kernel<T, S, wide<T>>, backward_kernel<T, S, 1>, start);
}

}  // namespace sparse_detr

// The kernels for CUDA, registered for the schema of ../deformable_attention.cpp, which has to be loaded before.
//
// Built against the stable ABI of libtorch, without the CUDA part of torch: the one function that is needed from there,
// the current stream, is looked up when it is first called.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include "../arguments.h"
#include "backward.cuh"
#include "forward.cuh"

namespace sparse_detr {
namespace {

constexpr int threads_a_block = 128;
constexpr int64_t most_shared_bytes = 48 * 1024;

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "deformable_attention: ", what, ": ", cudaGetErrorString(error));
}

// This library has a CUDA runtime of its own, linked statically: it is told the device, too.
class Device {
 public:
  explicit Device(int index) : guard_(index) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ != index) check(cudaSetDevice(index), "changing the device");
    index_ = index;
  }
  ~Device() {
    if (before_ != index_) (void)cudaSetDevice(before_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int before_ = 0, index_ = 0;
};

cudaStream_t current_stream(int device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    const char* const name = "aoti_torch_get_current_cuda_stream";
    void* found = dlsym(RTLD_DEFAULT, name);
    if (found == nullptr)
      if (void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW)) found = dlsym(library, name);
    return reinterpret_cast<Get>(found);
  }();
  STD_TORCH_CHECK(get != nullptr, "deformable_attention: this torch has no CUDA part; install a CUDA build of torch");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "deformable_attention: torch gives no current stream");
  return static_cast<cudaStream_t>(stream);
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T, class S>
Launch<T, S> launch_of(const Problem& p) {
  STD_TORCH_CHECK(
      p.levels <= most_levels && p.levels * p.points <= 96, "deformable_attention: ", p.levels, " levels of ",
      p.points, " points on CUDA; give at most ", most_levels, " levels and 96 samples, or set SPARSE_DETR_OP=reference");
  STD_TORCH_CHECK(
      p.queries < (int64_t{1} << 31), "deformable_attention: ", p.queries, " queries on CUDA; give fewer than 2^31");
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

template <class T, class S>
void start(
    void (*kernel)(const Launch<T, S>), Launch<T, S>& launch, int channels_a_lane, int64_t bytes_a_sample,
    cudaStream_t stream) {
  launch.lanes = 1;
  while (launch.lanes < 32 && launch.lanes * channels_a_lane < launch.channels) launch.lanes *= 2;
  const int64_t bytes = launch.levels * launch.points * bytes_a_sample;
  int threads = threads_a_block;
  while (threads > 32 && threads / launch.lanes * bytes > most_shared_bytes) threads /= 2;
  while (threads / launch.lanes * bytes > most_shared_bytes) launch.lanes *= 2;  // fewer groups, some lanes idle
  const int64_t groups_a_block = threads / launch.lanes;
  const int64_t blocks = (launch.groups + groups_a_block - 1) / groups_a_block;
  STD_TORCH_CHECK(
      blocks < (int64_t{1} << 31), "deformable_attention: ", launch.groups,
      " queries x heads in one call; split the batch");
  kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(groups_a_block * bytes), stream>>>(launch);
  check(cudaGetLastError(), "launching a kernel");
}

template <class T>
constexpr int wide = 16 / static_cast<int>(sizeof(T));

// Calls run with zeros of the value's and the samples' type.
template <class Run>
void by_type(const Problem& p, const Run& run) {
  STD_TORCH_CHECK(
      p.value_type != Element::float64, "deformable_attention: float64 on CUDA; set SPARSE_DETR_OP=reference");
  const bool exact = p.sample_type == Element::float32;
  if (p.value_type == Element::float32) return run(float{}, float{});
  if (p.value_type == Element::bfloat16) {
    exact ? run(__nv_bfloat16{}, float{}) : run(__nv_bfloat16{}, __nv_bfloat16{});
    return;
  }
  exact ? run(__half{}, float{}) : run(__half{}, __half{});
}

bool empty(const Problem& p) {
  return p.images == 0 || p.queries == 0 || p.heads == 0 || p.channels == 0 || p.points == 0;
}

Tensor forward_cuda(
    const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references, const Tensor& positions,
    const Tensor& weights) {
  Problem problem = checked(value, shapes, references, positions, weights);
  problem.shapes = shapes.data();
  const Device device(value.get_device_index());
  Tensor output = output_for(value, problem);
  if (empty(problem)) return torch::stable::fill_(output, 0.0);
  const cudaStream_t stream = current_stream(value.get_device_index());
  by_type(problem, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    Launch<T, S> launch = launch_of<T, S>(problem);
    if (problem.channels % wide<T> == 0 && aligned(problem.value) && aligned(problem.output))
      start<T, S>(forward_kernel<T, S, wide<T>>, launch, wide<T>, sizeof(ForwardSample), stream);
    else
      start<T, S>(forward_kernel<T, S, 1>, launch, 1, sizeof(ForwardSample), stream);
  });
  return output;
}

Gradients backward_cuda(
    const Tensor& gradient, const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references,
    const Tensor& positions, const Tensor& weights, bool for_value, bool for_samples) {
  Problem problem = checked(value, shapes, references, positions, weights);
  problem.shapes = shapes.data();
  take_gradient(gradient, value, problem);
  const Device device(value.get_device_index());
  Tensor to_value = nothing_like(value), to_positions = nothing_like(positions), to_weights = nothing_like(weights);
  Tensor sums = to_value;
  if (for_value) {
    sums = torch::stable::new_zeros(value, value.sizes(), ScalarType::Float);
    problem.value_gradient = sums.mutable_data_ptr();
  }
  if (for_samples) {
    to_positions = torch::stable::empty_like(positions);
    to_weights = torch::stable::empty_like(weights);
    problem.position_gradient = to_positions.mutable_data_ptr();
    problem.weight_gradient = to_weights.mutable_data_ptr();
  }
  const cudaStream_t stream = current_stream(value.get_device_index());
  if (empty(problem)) {
    if (for_samples) torch::stable::zero_(to_positions), torch::stable::zero_(to_weights);
  } else if (for_value || for_samples) {
    by_type(problem, [&](auto t, auto s) {
      using T = decltype(t);
      using S = decltype(s);
      Launch<T, S> launch = launch_of<T, S>(problem);
      if (problem.channels % wide<T> == 0 && aligned(problem.value) && aligned(problem.output_gradient))
        start<T, S>(backward_kernel<T, S, wide<T>>, launch, wide<T>, sizeof(BackwardSample), stream);
      else
        start<T, S>(backward_kernel<T, S, 1>, launch, 1, sizeof(BackwardSample), stream);
    });
  }
  if (!for_value || problem.value_type == Element::float32) return {for_value ? sums : to_value, to_positions, to_weights};
  to_value = torch::stable::empty_like(value);
  if (value.numel() > 0)
    by_type(problem, [&](auto t, auto) {
      using T = decltype(t);
      const int64_t count = value.numel(), blocks = (count + 255) / 256;
      convert_kernel<T><<<static_cast<unsigned>(blocks < 65536 ? blocks : 65536), 256, 0, stream>>>(
          static_cast<const float*>(sums.const_data_ptr()), static_cast<T*>(to_value.mutable_data_ptr()), count);
      check(cudaGetLastError(), "launching the conversion");
    });
  return {to_value, to_positions, to_weights};
}

Tensor deformable_attention(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  return forward_cuda(value, shapes, nullptr, locations, weights);
}

Gradients deformable_attention_backward(
    Tensor gradient, Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights, bool for_value,
    bool for_samples) {
  return backward_cuda(gradient, value, shapes, nullptr, locations, weights, for_value, for_samples);
}

Tensor fused(Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits) {
  return forward_cuda(value, shapes, &references, offsets, logits);
}

Gradients fused_backward(
    Tensor gradient, Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits,
    bool for_value, bool for_samples) {
  return backward_cuda(gradient, value, shapes, &references, offsets, logits, for_value, for_samples);
}

}  // namespace
}  // namespace sparse_detr

STABLE_TORCH_LIBRARY_IMPL(sparse_detr, CUDA, m) {
  m.impl("deformable_attention", TORCH_BOX(&sparse_detr::deformable_attention));
  m.impl("deformable_attention_backward", TORCH_BOX(&sparse_detr::deformable_attention_backward));
  m.impl("fused_deformable_attention", TORCH_BOX(&sparse_detr::fused));
  m.impl("fused_deformable_attention_backward", TORCH_BOX(&sparse_detr::fused_backward));
}

#ifndef SPARSE_DETR_CUDA_BUILD
#define SPARSE_DETR_CUDA_BUILD "CUDA 0.0 for nothing"
#endif

extern "C" __attribute__((visibility("default"))) const char* sparse_detr_cuda_build() {
  return SPARSE_DETR_CUDA_BUILD;
}

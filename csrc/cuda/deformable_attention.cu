// The kernels for CUDA, registered for the schema of ../deformable_attention.cpp, which has to be loaded before.
//
// Built against the stable ABI of libtorch, without the CUDA part of torch: the one function that is needed from there,
// the current stream, is looked up when it is first called.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include "../entries.h"
#include "launch.h"

namespace sparse_detr {
namespace {

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

template <class T, class S>
void start(void (*kernel)(const Launch<T, S>), const Launch<T, S>& launch, const Grid& grid, cudaStream_t stream) {
  STD_TORCH_CHECK(
      grid.blocks < (int64_t{1} << 31), "deformable_attention: ", launch.groups,
      " queries x heads in one call; split the batch");
  kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, static_cast<size_t>(grid.shared_bytes), stream>>>(launch);
  check(cudaGetLastError(), "launching a kernel");
}

void check_limits(const Problem& p) {
  const std::string wrong = refusal(p);
  STD_TORCH_CHECK(wrong.empty(), "deformable_attention: ", wrong);
}

// Calls `run` with a zero of the value's and one of the samples' type, for `decltype`.
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

Tensor forward_cuda(
    const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references, const Tensor& positions,
    const Tensor& weights) {
  Problem problem = checked(value, shapes, references, positions, weights);
  const Device device(value.get_device_index());
  Tensor output = output_for(value, problem);
  if (empty(problem)) return torch::stable::fill_(output, 0.0);
  check_limits(problem);
  const cudaStream_t stream = current_stream(value.get_device_index());
  by_type(problem, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    start_forward<T, S>(problem, [&](auto kernel, const Launch<T, S>& launch, const Grid& grid) {
      start(kernel, launch, grid, stream);
    });
  });
  return output;
}

Gradients backward_cuda(
    const Tensor& gradient, const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references,
    const Tensor& positions, const Tensor& weights, bool for_value, bool for_samples) {
  Problem problem = checked(value, shapes, references, positions, weights);
  take_gradient(gradient, value, problem);
  const Device device(value.get_device_index());
  Tensor to_value = nothing_like(value), to_positions = nothing_like(positions), to_weights = nothing_like(weights);
  Tensor sums = to_value;
  if (for_value) {
    sums = torch::stable::new_zeros(value, value.sizes(), ScalarType::Float);
    problem.value_gradient = sums.mutable_data_ptr();
  }
  if (for_samples) std::tie(to_positions, to_weights) = sample_gradients_for(positions, weights, problem);
  const cudaStream_t stream = current_stream(value.get_device_index());
  if (!empty(problem) && (for_value || for_samples)) {
    check_limits(problem);
    by_type(problem, [&](auto t, auto s) {
      using T = decltype(t);
      using S = decltype(s);
      start_backward<T, S>(problem, [&](auto kernel, const Launch<T, S>& launch, const Grid& grid) {
        start(kernel, launch, grid, stream);
      });
    });
  }
  if (!for_value) return {to_value, to_positions, to_weights};
  if (problem.value_type == Element::float32) return {sums, to_positions, to_weights};
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

}  // namespace
}  // namespace sparse_detr

STABLE_TORCH_LIBRARY_IMPL(sparse_detr, CUDA, m) {
  sparse_detr::Entries<sparse_detr::forward_cuda, sparse_detr::backward_cuda>::implement(m);
}

#ifndef SPARSE_DETR_CUDA_BUILD
#define SPARSE_DETR_CUDA_BUILD "CUDA 0.0 for nothing"
#endif

extern "C" __attribute__((visibility("default"))) const char* sparse_detr_cuda_build() {
  return SPARSE_DETR_CUDA_BUILD;
}

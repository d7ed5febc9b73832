// The CUDA kernels on a CPU (emulated_cuda.h), launched as csrc/cuda/launch.h says, on tensors that are allocated to
// the byte, against the formula in double (formula.h). Built by `make emulate`.
#include "emulated_cuda.h"

#include "../../csrc/cuda/launch.h"
#include "formula.h"

using namespace sparse_detr;

namespace {

template <class T, class S>
void forward(Call<T, S>& call, bool backwards) {
  call.p.output = call.output.data;
  start_forward<T, S>(call.p, [&](auto kernel, const Launch<T, S>& launch, const Grid& grid) {
    emulated::launch(grid.blocks, grid.threads, grid.shared_bytes, backwards, [&] { kernel(launch); });
  });
  call.compare("output", call.output);
}

template <class T, class S>
void backward(Call<T, S>& call, bool backwards, bool for_value, bool for_samples) {
  memset(call.to_value.data, 0, call.to_value.exact.size() * sizeof(float));
  call.p.output_gradient = call.gradient.data;
  call.p.value_gradient = for_value ? call.to_value.data : nullptr;
  call.p.position_gradient = for_samples ? call.to_positions.data : nullptr;
  call.p.weight_gradient = for_samples ? call.to_weights.data : nullptr;
  start_backward<T, S>(call.p, [&](auto kernel, const Launch<T, S>& launch, const Grid& grid) {
    emulated::launch(grid.blocks, grid.threads, grid.shared_bytes, backwards, [&] { kernel(launch); });
  });
  if (for_value) call.compare("the value's gradient", call.to_value);
  if (!for_samples) return;
  call.compare("the positions' gradient", call.to_positions);
  call.compare("the weights' gradient", call.to_weights);
}

template <class T, class S>
void run(Problem p, const std::vector<int64_t>& shapes, int64_t shift) {
  p.levels = static_cast<int64_t>(shapes.size()) / 2, p.tokens = 0;
  for (int64_t level = 0; level < p.levels; ++level) p.tokens += shapes[2 * level] * shapes[2 * level + 1];
  Call<T, S> call(p, shapes, shift);
  call.formula();
  const bool backwards = between(0, 1);
  forward(call, backwards);
  const int64_t wanted = between(0, 4);
  backward(call, backwards, wanted != 0, wanted != 1);
}

template <class T, class S>
void run_any(int64_t reference_size) {
  constexpr int64_t channels[] = {1, 2, 4, 8, 12, 13, 16, 32, 36, 37, 64, 160};
  Problem p{};
  p.images = between(1, 2), p.queries = between(1, 9), p.heads = between(1, between(0, 4) ? 4 : 16);
  p.channels = channels[between(0, 11)], p.points = between(1, between(0, 2) ? 4 : 8);
  p.reference_size = reference_size;
  std::vector<int64_t> shapes;
  for (int64_t level = between(1, 5); level > 0; --level) {
    const bool one = between(0, 3) == 0;
    shapes.push_back(one ? 1 : between(1, 6)), shapes.push_back(one ? 1 : between(1, 6));
  }
  run<T, S>(p, shapes, between(0, 3) == 0);
}

// The most levels, samples and channels that are allowed; and one lane a group where shared memory is scarce.
template <class T, class S>
void run_limits() {
  for (int64_t channels : {1024, 4, 1}) {
    Problem p{};
    p.images = 1, p.queries = 3, p.heads = channels == 1024 ? 1 : 15, p.channels = channels, p.points = 6;
    p.reference_size = 2;
    run<T, S>(p, std::vector<int64_t>(2 * most_levels, 2), 0);
  }
}

void check_grids() {
  Problem p{};
  p.levels = 1, p.points = most_samples;
  if (!refusal(p).empty()) fail("96 samples are refused");
  ++p.points;
  if (refusal(p).empty()) fail("97 samples are not refused");
  p.levels = most_levels + 1, p.points = 1;
  if (refusal(p).empty()) fail("17 levels are not refused");
  for (int64_t samples = 1; samples <= most_samples; ++samples)
    for (int64_t bytes : {sizeof(ForwardSample), sizeof(BackwardSample)})
      for (int64_t channels = 1; channels <= 1024; ++channels)
        for (int channels_a_lane : {1, 4, 8}) {
          const Grid grid = grid_of(1000, channels, channels_a_lane, samples * bytes);
          const bool lanes = grid.lanes >= 1 && grid.lanes <= 32 && (grid.lanes & (grid.lanes - 1)) == 0;
          const bool threads = grid.threads % 32 == 0 && grid.threads >= 32 && grid.threads <= 128;
          const int64_t groups = grid.groups_a_block;
          const bool memory = grid.shared_bytes == groups * samples * bytes && grid.shared_bytes <= 48 * 1024;
          const bool blocks = grid.blocks * groups >= 1000 && (grid.blocks - 1) * groups < 1000;
          if (!lanes || !threads || !memory || !blocks || groups * grid.lanes != grid.threads)
            fail("a grid for " + std::to_string(samples) + " samples, " + std::to_string(channels) + " channels");
        }
}

template <class T>
void check_conversion() {
  Tensor<float> from(1000);
  Tensor<T> to(1000);
  from.fill();
  emulated::launch(3, 256, 0, false, [&] { convert_kernel<T>(from.data, to.data, 1000); });
  for (int64_t i = 0; i < 1000; ++i)
    if (to_float(to.data[i]) != to_float(from_float<T>(from.data[i]))) fail("the conversion of sums");
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? atoll(arguments[1]) : 10;
  check_grids();
  check_conversion<__nv_bfloat16>(), check_conversion<__half>();
  for (int64_t round = 0; round < rounds; ++round)
    for (int64_t reference_size : {0, 2, 4}) {
      run_any<float, float>(reference_size);
      run_any<__nv_bfloat16, float>(reference_size);
      run_any<__half, float>(reference_size);
      if (reference_size == 0) continue;
      run_any<__nv_bfloat16, __nv_bfloat16>(reference_size);
      run_any<__half, __half>(reference_size);
    }
  run_limits<float, float>(), run_limits<__nv_bfloat16, __nv_bfloat16>();
#ifdef __CUDA_ARCH__
  printf("sm_%d: ", __CUDA_ARCH__ / 10);
#endif
  printf("%ld rounds agree with the formula\n", static_cast<long>(rounds));
}

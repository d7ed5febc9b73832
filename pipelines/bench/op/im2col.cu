// The baseline of the benchmark: multi-scale deformable attention on a GPU in the usual way, which goes back to
// im2col for deformable convolutions. One thread for each number of the output, in float32 and one number a load; every
// thread computes where its samples lie, though all channels of a head share that. Locations and weights are given.
//
// Written from the formula (Deformable DETR, equation 3) to be plain, not to be fast. No torch: im2col.py
// compiles this file when the benchmark needs it. A C++ compiler takes it, too (g++ -x c++): then a loop stands for the
// threads, and tests compare the arithmetic with plain torch on machines without a GPU.
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define BOTH __host__ __device__ __forceinline__
#else
#define BOTH inline
#endif

// im2col.py declares the same. All tensors are contiguous and have fewer than 2^31 numbers.
struct Problem {
  const float* value;            // [B, T, M, D]
  const int32_t* levels;         // [L, 3]: height, width, first token
  const float* locations;        // [B, Q, M, L, P, 2]
  const float* weights;          // [B, Q, M, L, P]
  float* output;                 // [B, Q, M, D]
  const float* output_gradient;  // [B, Q, M, D]
  float* value_gradient;         // zeros before
  float* location_gradient;
  float* weight_gradient;
  void* stream;
  int32_t images, tokens, queries, heads, channels, level_count, points, device;
};

namespace {

// One channel of one level, for a thread that looks at one image and head.
struct Plane {
  int height, width;
  int64_t first;  // elements from `value` to its first cell
  int32_t step;   // from a cell to the next
};

BOTH Plane plane_at(const Problem& p, int row, int channel, int level) {
  const int head = row % p.heads, image = row / p.heads / p.queries;
  const int64_t token = static_cast<int64_t>(image) * p.tokens + p.levels[3 * level + 2];
  const int64_t first = (token * p.heads + head) * p.channels + channel;
  return {p.levels[3 * level], p.levels[3 * level + 1], first, p.heads * p.channels};
}

// The pixel at the top left of a sample, which may be outside, and the shares of its neighbours.
struct Sample {
  bool outside;
  int left, top;
  float right_share, bottom_share;
};

BOTH Sample sample_at(const Plane& plane, const float* location) {
  const float width = static_cast<float>(plane.width), height = static_cast<float>(plane.height);
  const float x = location[0] * width - 0.5f, y = location[1] * height - 0.5f;
  // NaN compares false and is outside.
  const bool inside = x > -1.f && y > -1.f && x < width && y < height;
  const float left = inside ? floorf(x) : 0.f, top = inside ? floorf(y) : 0.f;
  return {!inside, static_cast<int>(left), static_cast<int>(top), x - left, y - top};
}

// A neighbour: elements from `value`, -1 for one that is outside; and its shares along the two axes.
struct Corner {
  int64_t cell;
  float x_share, y_share;
};

BOTH Corner corner_at(const Plane& plane, const Sample& sample, bool right, bool below) {
  const int column = sample.left + (right ? 1 : 0), line = sample.top + (below ? 1 : 0);
  const bool inside = column >= 0 && line >= 0 && column < plane.width && line < plane.height;
  const int64_t cell = inside ? plane.first + static_cast<int64_t>(line * plane.width + column) * plane.step : -1;
  const float x_share = right ? sample.right_share : 1.f - sample.right_share;
  const float y_share = below ? sample.bottom_share : 1.f - sample.bottom_share;
  return {cell, x_share, y_share};
}

BOTH float output_number(const Problem& p, int row, int channel) {
  float sum = 0.f;
  int64_t index = static_cast<int64_t>(row) * p.level_count * p.points;
  for (int level = 0; level < p.level_count; ++level) {
    const Plane plane = plane_at(p, row, channel, level);
    for (int point = 0; point < p.points; ++point, ++index) {
      const Sample sample = sample_at(plane, p.locations + 2 * index);
      if (sample.outside) continue;
      float value = 0.f;
      for (int c = 0; c < 4; ++c) {
        const Corner corner = corner_at(plane, sample, c % 2, c / 2);
        if (corner.cell >= 0) value += corner.x_share * corner.y_share * p.value[corner.cell];
      }
      sum += p.weights[index] * value;
    }
  }
  return sum;
}

BOTH void add(float* to, float x) {
#if defined(__CUDA_ARCH__)
  atomicAdd(to, x);
#else
  *to += x;
#endif
}

// What one channel contributes to the gradients of a sample's location and weight.
struct Part {
  float x, y, weight;
};

// Adds to the value's gradient on the way. `index` counts samples from the tensor's first.
BOTH Part gradient_part(const Problem& p, const Plane& plane, int64_t index, float given) {
  Part part = {0.f, 0.f, 0.f};
  const Sample sample = sample_at(plane, p.locations + 2 * index);
  if (sample.outside) return part;
  const float weighted = given * p.weights[index];
  for (int c = 0; c < 4; ++c) {
    const Corner corner = corner_at(plane, sample, c % 2, c / 2);
    if (corner.cell < 0) continue;
    const float value = p.value[corner.cell];
    add(p.value_gradient + corner.cell, weighted * corner.x_share * corner.y_share);
    part.x += (c % 2 ? value : -value) * corner.y_share;
    part.y += (c / 2 ? value : -value) * corner.x_share;
    part.weight += corner.x_share * corner.y_share * value;
  }
  part.x *= weighted * static_cast<float>(plane.width);
  part.y *= weighted * static_cast<float>(plane.height);
  part.weight *= given;
  return part;
}

BOTH float given_to(const Problem& p, int row, int channel) {
  return p.output_gradient[static_cast<int64_t>(row) * p.channels + channel];
}

BOTH void store(const Problem& p, int64_t index, const Part& sum) {
  p.location_gradient[2 * index] = sum.x, p.location_gradient[2 * index + 1] = sum.y;
  p.weight_gradient[index] = sum.weight;
}

inline int rows(const Problem& p) { return p.images * p.queries * p.heads; }

#if defined(__CUDACC__)

constexpr int threads_a_block = 256;

__global__ void forward_kernel(const Problem p, int count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int number = static_cast<int>(index);
  p.output[number] = output_number(p, number / p.channels, number % p.channels);
}

// A block for each image, query and head, a thread for each channel.
__global__ void backward_kernel(const Problem p) {
  extern __shared__ float sums[];  // [3, D]: parts of x, y and the weight
  const int row = static_cast<int>(blockIdx.x), channel = static_cast<int>(threadIdx.x);
  float *const x = sums, *const y = sums + p.channels, *const weight = sums + 2 * p.channels;
  const float given = given_to(p, row, channel);
  int64_t index = static_cast<int64_t>(row) * p.level_count * p.points;
  for (int level = 0; level < p.level_count; ++level) {
    const Plane plane = plane_at(p, row, channel, level);
    for (int point = 0; point < p.points; ++point, ++index) {
      const Part part = gradient_part(p, plane, index, given);
      x[channel] = part.x, y[channel] = part.y, weight[channel] = part.weight;
      __syncthreads();
      for (int left = p.channels; left > 1;) {  // an odd one in the middle waits for the next round
        const int half = (left + 1) / 2;
        if (channel < left / 2) {
          x[channel] += x[channel + half];
          y[channel] += y[channel + half];
          weight[channel] += weight[channel + half];
        }
        __syncthreads();
        left = half;
      }
      if (channel == 0) store(p, index, {x[0], y[0], weight[0]});
      __syncthreads();  // read before the next sample's parts are written
    }
  }
}

#endif

}  // namespace

// Both return the CUDA error of the launch: 0 is success.

extern "C" int im2col_forward(const Problem* p) {
  const int count = rows(*p) * p->channels;
  if (count == 0) return 0;
#if defined(__CUDACC__)
  // The runtime is linked statically: it has to be told which device torch uses.
  if (const cudaError_t error = cudaSetDevice(p->device)) return error;
  const int blocks = (count - 1) / threads_a_block + 1;
  forward_kernel<<<blocks, threads_a_block, 0, static_cast<cudaStream_t>(p->stream)>>>(*p, count);
  return cudaGetLastError();
#else
  for (int number = 0; number < count; ++number)
    p->output[number] = output_number(*p, number / p->channels, number % p->channels);
  return 0;
#endif
}

extern "C" int im2col_backward(const Problem* p) {
  if (rows(*p) * p->channels == 0) return 0;
#if defined(__CUDACC__)
  if (const cudaError_t error = cudaSetDevice(p->device)) return error;
  const auto shared_bytes = static_cast<unsigned>(3 * sizeof(float)) * static_cast<unsigned>(p->channels);
  backward_kernel<<<rows(*p), p->channels, shared_bytes, static_cast<cudaStream_t>(p->stream)>>>(*p);
  return cudaGetLastError();
#else
  const int samples = p->level_count * p->points;
  for (int row = 0; row < rows(*p); ++row)
    for (int s = 0; s < samples; ++s) {
      Part sum = {0.f, 0.f, 0.f};
      for (int channel = 0; channel < p->channels; ++channel) {
        const Plane plane = plane_at(*p, row, channel, s / p->points);
        const Part part = gradient_part(*p, plane, static_cast<int64_t>(row) * samples + s, given_to(*p, row, channel));
        sum.x += part.x, sum.y += part.y, sum.weight += part.weight;
      }
      store(*p, static_cast<int64_t>(row) * samples + s, sum);
    }
  return 0;
#endif
}

extern "C" const char* im2col_error(int code) {
#if defined(__CUDACC__)
  return cudaGetErrorString(static_cast<cudaError_t>(code));
#else
  return code == 0 ? "no error" : "an error";
#endif
}

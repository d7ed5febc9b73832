// Several channels at once: 16 bytes in one load, converted to float; and their atomic addition.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace sparse_detr {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T entry[count];
};

template <class T, int count>
__device__ __forceinline__ void load(const T* from, float (&to)[count]) {
  const Pack<T, count> pack = *reinterpret_cast<const Pack<T, count>*>(from);
#pragma unroll
  for (int i = 0; i < count; ++i) to[i] = to_float(pack.entry[i]);
}

template <class T, int count>
__device__ __forceinline__ void store(T* to, const float (&from)[count]) {
  Pack<T, count> pack;
#pragma unroll
  for (int i = 0; i < count; ++i) pack.entry[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, count>*>(to) = pack;
}

// One instruction for four numbers from sm_90 on, four before.
template <int count>
__device__ __forceinline__ void add_atomically(float* to, const float (&x)[count], float weight) {
#if __CUDA_ARCH__ >= 900
  constexpr bool by_fours = count % 4 == 0;
#else
  constexpr bool by_fours = false;
#endif
  if constexpr (by_fours) {
#if __CUDA_ARCH__ >= 900
#pragma unroll
    for (int i = 0; i < count; i += 4)
      atomicAdd(
          reinterpret_cast<float4*>(to + i),
          make_float4(x[i] * weight, x[i + 1] * weight, x[i + 2] * weight, x[i + 3] * weight));
#endif
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) atomicAdd(to + i, x[i] * weight);
  }
}

}  // namespace sparse_detr

// The arithmetic of one sample: its sampling location, its four corners and their weights, the softmax, all gradients.
//
// Host and device share it: the CPU kernels instantiate it with vectors whose lanes are samples, the CUDA kernels with
// float. So the tests of the CPU kernels against float64 check what the GPU computes, too.
//
// `Real` is float, double or a vector of them; `Lanes<Real>` (here for scalars, in cpu/vectors.h for vectors) says how
// to convert and to exponentiate. Conditions are written as `a < b ? c : d`, which means the same for both.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SPARSE_DETR_INLINE __host__ __device__ __forceinline__
#else
#define SPARSE_DETR_INLINE inline __attribute__((always_inline))
#endif

// One object file for each instruction set: a name of its own keeps the linker from merging their functions.
#ifndef SPARSE_DETR_ISA
#define SPARSE_DETR_ISA scalar
#endif

namespace sparse_detr {
inline namespace SPARSE_DETR_ISA {

template <class Real>
struct Lanes;

template <>
struct Lanes<float> {
  using Int = int32_t;
  static SPARSE_DETR_INLINE float all(double x) { return static_cast<float>(x); }
  static SPARSE_DETR_INLINE Int truncate(float x) { return static_cast<Int>(x); }
  static SPARSE_DETR_INLINE float real(Int x) { return static_cast<float>(x); }
  static SPARSE_DETR_INLINE float exponential(float x) { return expf(x); }
};

template <>
struct Lanes<double> {
  using Int = int64_t;
  static SPARSE_DETR_INLINE double all(double x) { return x; }
  static SPARSE_DETR_INLINE Int truncate(double x) { return static_cast<Int>(x); }
  static SPARSE_DETR_INLINE double real(Int x) { return static_cast<double>(x); }
  static SPARSE_DETR_INLINE double exponential(double x) { return exp(x); }
};

// Positions in pixels of the level: 0 is the centre of the first pixel of a row or column, size - 1 that of the last.

// From a sampling location relative to the level: 0 and 1 are the outer edges of the first and the last pixel.
template <class Real>
SPARSE_DETR_INLINE Real pixel_of_location(Real location, Real size) {
  return location * size - Lanes<Real>::all(0.5);
}

// From a reference point (x, y) and an offset in pixels.
template <class Real>
SPARSE_DETR_INLINE Real pixel_of_offset(Real reference, Real offset, Real size) {
  return reference * size + (offset - Lanes<Real>::all(0.5));
}

// Pixels that an offset of 1 moves, beside a reference box (cx, cy, w, h): half its extent, divided by the points.
template <class Real>
SPARSE_DETR_INLINE Real pixels_per_offset(Real extent, Real size, Real half_over_points) {
  return extent * half_over_points * size;
}

// The two neighbouring pixels of an axis around a position, clamped to the level, and their linear weights: 0 outside.
template <class Real>
struct Axis {
  typename Lanes<Real>::Int low, high;
  Real low_weight, high_weight;
  Real low_slope, high_slope;  // derivatives of the weights with respect to the position
};

template <class Real>
SPARSE_DETR_INLINE Axis<Real> around(Real pixel, Real size) {
  using L = Lanes<Real>;
  const Real zero = L::all(0), one = L::all(1), last = size - one;
  // Positions far outside, and NaN, move to just outside the level, where integers can hold them.
  pixel = pixel > L::all(-2) ? pixel : L::all(-2);
  pixel = pixel < size + one ? pixel : size + one;
  Real low = L::real(L::truncate(pixel));
  low = low > pixel ? low - one : low;
  const Real part = pixel - low, high = low + one;
  Real low_index = low > zero ? low : zero;
  low_index = low_index < last ? low_index : last;
  Real high_index = high > zero ? high : zero;
  high_index = high_index < last ? high_index : last;
  Axis<Real> axis;
  axis.low = L::truncate(low_index);
  axis.high = L::truncate(high_index);
  axis.low_weight = low_index == low ? one - part : zero;
  axis.high_weight = high_index == high ? part : zero;
  axis.low_slope = low_index == low ? -one : zero;
  axis.high_slope = high_index == high ? one : zero;
  return axis;
}

// The four corners are numbered top left, top right, bottom left, bottom right.
template <class Real>
struct CornerWeights {
  Real at[4];
};

template <class Real>
SPARSE_DETR_INLINE CornerWeights<Real> corner_weights(const Axis<Real>& x, const Axis<Real>& y, Real weight) {
  const Real top = y.low_weight * weight, bottom = y.high_weight * weight;
  return {{top * x.low_weight, top * x.high_weight, bottom * x.low_weight, bottom * x.high_weight}};
}

// Gradients of one sample. `dot[c]` is the product of the output's gradient with the value at corner c.
template <class Real>
struct SampleGradient {
  Real x, y;    // for the position, in pixels
  Real weight;  // for the attention weight
};

template <class Real>
SPARSE_DETR_INLINE SampleGradient<Real> sample_gradient(
    const Axis<Real>& x, const Axis<Real>& y, Real weight, const Real dot[4]) {
  const Real top = x.low_weight * dot[0] + x.high_weight * dot[1];
  const Real bottom = x.low_weight * dot[2] + x.high_weight * dot[3];
  const Real along_top = x.low_slope * dot[0] + x.high_slope * dot[1];
  const Real along_bottom = x.low_slope * dot[2] + x.high_slope * dot[3];
  SampleGradient<Real> gradient;
  gradient.x = weight * (y.low_weight * along_top + y.high_weight * along_bottom);
  gradient.y = weight * (y.low_slope * top + y.high_slope * bottom);
  gradient.weight = y.low_weight * top + y.high_weight * bottom;
  return gradient;
}

// Softmax: exponential(logit - largest) over their sum; its gradient needs the sum of weight x gradient.
template <class Real>
SPARSE_DETR_INLINE Real softmax_term(Real logit, Real largest) {
  return Lanes<Real>::exponential(logit - largest);
}

template <class Real>
SPARSE_DETR_INLINE Real softmax_gradient(Real weight, Real gradient, Real weighted_sum) {
  return weight * (gradient - weighted_sum);
}

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr

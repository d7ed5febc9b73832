// The backward on the CPU, in two independent halves.
//
// Gradients of positions and weights: products of the output's gradient with the four corners of every sample, a task
// for some queries, as in the forward. Gradient of the value: the output's gradient, times the corner weights, added to
// the corners' rows; a task has the tokens of an image and head to itself and adds its queries in order, so that no
// atomics are needed and the sums are the same for any number of threads.
#pragma once

#include "forward.h"

namespace sparse_detr {
inline namespace SPARSE_DETR_ISA {

// The products of a row of the gradient with the rows of `lanes` corners, in the lanes.
template <class T, class S, int units>
SPARSE_DETR_INLINE typename Channels<T>::Real products(const T* gradient, const T* values, const int32_t* index) {
  using C = Channels<T>;
  using Real = typename C::Real;
  Real given[units * C::parts];
#pragma GCC unroll 8
  for (int u = 0; u < units; ++u) C::read(gradient + u * C::width, given + u * C::parts);
  asm("" : "+r"(index));  // otherwise GCC computes all addresses before the loop over channels, and spills them
  const auto part = [&](int lane) SPARSE_DETR_LAMBDA {
    const T* corner = values + index[lane];
    Real sum{};
#pragma GCC unroll 8
    for (int u = 0; u < units; ++u) {
      Real row[C::parts];
      C::read(corner + u * C::width, row);
#pragma GCC unroll 2
      for (int k = 0; k < C::parts; ++k)
        sum = u + k == 0 ? row[0] * given[0] : sum + row[k] * given[u * C::parts + k];
    }
    return sum;
  };
  return lane_sums<Real, Lanes<Real>::count>(part, 0);
}

template <class T, class S>
SPARSE_DETR_INLINE typename Channels<T>::Real all_products(
    int64_t channels, const T* gradient, const T* values, const int32_t* index) {
  using C = Channels<T>;
  typename C::Real sum{};
  int64_t d = 0;
  for (; d + 4 * C::width <= channels; d += 4 * C::width) sum += products<T, S, 4>(gradient + d, values + d, index);
  for (; d + 2 * C::width <= channels; d += 2 * C::width) sum += products<T, S, 2>(gradient + d, values + d, index);
  for (; d + C::width <= channels; d += C::width) sum += products<T, S, 1>(gradient + d, values + d, index);
  for (; d < channels; ++d)
    for (int lane = 0; lane < Samples<T, S>::lanes; ++lane)
      sum[lane] += C::scalar(gradient[d]) * C::scalar(values[index[lane] + d]);
  return sum;
}

template <class T, class S>
SPARSE_DETR_INLINE void sample_gradient_place(
    Samples<T, S>& samples, const typename Samples<T, S>::Slot& slot, const Place& at, const T* values,
    typename Samples<T, S>::Scalar* weight_gradient) {
  using Real = typename Channels<T>::Real;
  constexpr int lanes = Samples<T, S>::lanes;
  const Problem& p = samples.p;
  const int64_t row = (at.image * p.queries + at.query) * p.heads + at.head, count = samples.count;
  const T* gradient = static_cast<const T*>(p.output_gradient) + row * p.channels;
  S* to_position = static_cast<S*>(p.position_gradient) + row * count * 2;
  S* to_weight = static_cast<S*>(p.weight_gradient) + row * count;
  const bool softmax = p.reference_size != 0;
  Real weighted{};
  for (int64_t s = 0; s < samples.padded; s += lanes) {
    Real dot[4];
    for (int c = 0; c < 4; ++c)
      dot[c] = all_products<T, S>(p.channels, gradient, values, slot.index + c * samples.padded + s);
    const auto& g = slot.group[s / lanes];
    const SampleGradient<Real> result = sample_gradient(g.x, g.y, g.weight, dot);
    weighted += g.weight * result.weight;
    store(weight_gradient + s, result.weight);
    const Real x = result.x * g.x_scale, y = result.y * g.y_scale;
    if (s + lanes <= count) {
      Channels<S>::store_samples(to_position + 2 * s, picked<Interleave<0, lanes>>(x, y));
      Channels<S>::store_samples(to_position + 2 * s + lanes, picked<Interleave<1, lanes>>(x, y));
    } else {
      for (int64_t i = s; i < count; ++i) {
        to_position[2 * i] = Channels<S>::narrow(x[i - s]);
        to_position[2 * i + 1] = Channels<S>::narrow(y[i - s]);
      }
    }
  }
  const Real sum = Real{} + sum_of(weighted);
  for (int64_t s = 0; s < samples.padded; s += lanes) {
    Real result = load<Real>(weight_gradient + s);
    if (softmax) result = softmax_gradient(slot.group[s / lanes].weight, result, sum);
    if (s + lanes <= count)
      Channels<S>::store_samples(to_weight + s, result);
    else
      for (int64_t i = s; i < count; ++i) to_weight[i] = Channels<S>::narrow(result[i - s]);
  }
}

template <class T, class S>
void sample_gradients_task(const Problem& p, int64_t threads, int64_t task, Scratch& scratch) {
  using Scalar = typename Samples<T, S>::Scalar;
  const bool packed = worth_packing(p);
  const Range range = range_of(p, threads, task);
  const int64_t padded = p.levels * p.points + Samples<T, S>::lanes;
  if (packed) {
    Samples<T, S> samples(p, p.channels, scratch);
    Scalar* raw = scratch.template take<Scalar>(padded);
    T* values = scratch.template take<T>(p.tokens * p.channels);
    pack(p, range.image, range.head, values);
    const auto at = [&](int64_t i) { return Place{range.image, range.begin + i, range.head}; };
    const int64_t places = range.end - range.begin;
    run_places<true, false>(samples, places, values, at, [&](const auto& slot, const Place& place, const auto&) {
      sample_gradient_place(samples, slot, place, values, raw);
    });
  } else {
    Samples<T, S> samples(p, p.heads * p.channels, scratch);
    Scalar* raw = scratch.template take<Scalar>(padded);
    const T* values = static_cast<const T*>(p.value);
    const auto at = [&](int64_t i) {
      const int64_t query = range.begin + i / p.heads;
      return Place{query / p.queries, query % p.queries, i % p.heads};
    };
    const int64_t places = (range.end - range.begin) * p.heads;
    run_places<true, true>(samples, places, values, at, [&](const auto& slot, const Place& place, auto next) {
      const T* head = values + (place.image * p.tokens * p.heads + place.head) * p.channels;
      next.ask_all(samples);
      sample_gradient_place(samples, slot, place, head, raw);
    });
  }
}

template <class T, class S>
bool sample_gradients(const Problem& p, int64_t threads, int64_t begin, int64_t end) {
  const int64_t raw = (p.levels * p.points + Samples<T, S>::lanes) * static_cast<int64_t>(sizeof(double));
  Scratch scratch(Samples<T, S>::scratch_bytes(p) + raw + head_bytes<T>(p) + 256);
  for (int64_t task = begin; task < end && !scratch.failed(); ++task) {
    scratch.reset();
    sample_gradients_task<T, S>(p, threads, task, scratch);
  }
  return !scratch.failed();
}

// Adds one row of the gradient, times the corner weights, to the corners' rows of `sums`, whose channels are in the
// order of Channels<T>::read.
template <class T, class S, int units, class Next>
SPARSE_DETR_INLINE void add_to_rows(
    const Samples<T, S>& samples, const typename Samples<T, S>::Slot& slot, const Next& next, const T* gradient,
    typename Samples<T, S>::Scalar* sums) {
  using C = Channels<T>;
  using Real = typename C::Real;
  constexpr int vectors = units * C::parts, lanes = Samples<T, S>::lanes;
  Real given[vectors];
#pragma GCC unroll 8
  for (int u = 0; u < units; ++u) C::read(gradient + u * C::width, given + u * C::parts);
  const int64_t padded = samples.padded;
  for (int64_t s = 0; s < samples.count; ++s) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      auto* corner = sums + slot.index[c * padded + s];
      const auto weight = slot.corner_weight[c * padded + s];
      next.ask(c * padded + s, units * C::width);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) store(corner + v * lanes, load<Real>(corner + v * lanes) + given[v] * weight);
    }
  }
}

template <class T, class S, class Next>
SPARSE_DETR_INLINE void value_gradient_place(
    const Samples<T, S>& samples, const typename Samples<T, S>::Slot& slot, const Next& next, const T* gradient,
    typename Samples<T, S>::Scalar* sums) {
  using C = Channels<T>;
  const int64_t channels = samples.p.channels;
  int64_t d = 0;
  for (; d + 4 * C::width <= channels; d += 4 * C::width)
    add_to_rows<T, S, 4>(samples, slot, next.from(d), gradient + d, sums + d);
  for (; d + 2 * C::width <= channels; d += 2 * C::width)
    add_to_rows<T, S, 2>(samples, slot, next.from(d), gradient + d, sums + d);
  for (; d + C::width <= channels; d += C::width)
    add_to_rows<T, S, 1>(samples, slot, next.from(d), gradient + d, sums + d);
  for (; d < channels; ++d)
    for (int64_t s = 0; s < samples.count; ++s)
      for (int c = 0; c < 4; ++c) {
        const int64_t i = c * samples.padded + s;
        sums[slot.index[i] + d] += C::scalar(gradient[d]) * slot.corner_weight[i];
      }
}

// Writes sums, whose channels are in the order of Channels<T>::read, to the tokens of one image and head.
template <class T, class Scalar>
void unpack(const Problem& p, int64_t image, int64_t head, const Scalar* from) {
  using C = Channels<T>;
  using Real = typename C::Real;
  T* to = static_cast<T*>(p.value_gradient) + (image * p.tokens * p.heads + head) * p.channels;
  for (int64_t token = 0; token < p.tokens; ++token, to += p.heads * p.channels, from += p.channels) {
    int64_t d = 0;
    for (; d + C::width <= p.channels; d += C::width) {
      Real row[C::parts];
      for (int k = 0; k < C::parts; ++k) row[k] = load<Real>(from + d + k * Lanes<Real>::count);
      C::write(to + d, row);
    }
    for (; d < p.channels; ++d) to[d] = C::narrow(from[d]);
  }
}

// Whether sums go straight into the value's gradient, which holds zeros: few queries touch few of the tokens.
template <class T>
bool in_place(const Problem& p) {
  return Channels<T>::parts == 1 && !worth_packing(p);
}

template <class T>
int64_t value_tasks(const Problem& p, int64_t threads) {
  return p.images * (in_place<T>(p) && threads < p.heads ? threads : p.heads);
}

template <class T, class S>
void value_gradients_task(const Problem& p, int64_t threads, int64_t task, Scratch& scratch) {
  using Scalar = typename Samples<T, S>::Scalar;
  const T* gradient = static_cast<const T*>(p.output_gradient);
  const int64_t per_image = value_tasks<T>(p, threads) / p.images, image = task / per_image, part = task % per_image;
  const int64_t first = p.heads * part / per_image, heads = p.heads * (part + 1) / per_image - first;
  const int64_t held = in_place<T>(p) ? 0 : p.tokens * p.channels;
  const auto at = [&](int64_t i) { return Place{image, i / heads, first + i % heads}; };
  const auto given = [&](const Place& place) {
    return gradient + ((place.image * p.queries + place.query) * p.heads + place.head) * p.channels;
  };
  if constexpr (Channels<T>::parts == 1) {
    if (in_place<T>(p)) {
      Samples<T, S> samples(p, p.heads * p.channels, scratch);
      T* sums = static_cast<T*>(p.value_gradient);
      const T* as_read = sums;
      const int64_t places = p.queries * heads;
      run_places<false, true>(samples, places, as_read, at, [&](const auto& slot, const Place& place, auto next) {
        T* head = sums + (place.image * p.tokens * p.heads + place.head) * p.channels;
        value_gradient_place(samples, slot, next, given(place), head);
      });
      return;
    }
  }
  Samples<T, S> samples(p, p.channels, scratch);
  Scalar* sums = scratch.template take<Scalar>(held);
  memset(sums, 0, static_cast<size_t>(held) * sizeof(Scalar));
  const T* nothing = nullptr;
  run_places<false, false>(samples, p.queries, nothing, at, [&](const auto& slot, const Place& place, auto next) {
    value_gradient_place(samples, slot, next, given(place), sums);
  });
  unpack<T>(p, image, first, sums);
}

template <class T, class S>
bool value_gradients(const Problem& p, int64_t threads, int64_t begin, int64_t end) {
  const int64_t sums = in_place<T>(p) ? 0 : p.tokens * p.channels;
  Scratch scratch(
      Samples<T, S>::scratch_bytes(p) + sums * static_cast<int64_t>(sizeof(typename Samples<T, S>::Scalar)) + 64);
  for (int64_t task = begin; task < end && !scratch.failed(); ++task) {
    scratch.reset();
    value_gradients_task<T, S>(p, threads, task, scratch);
  }
  return !scratch.failed();
}

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr

// The forward on the CPU: every output is a sum of rows of `value`, taken in vectors of channels.
#pragma once

#include "samples.h"

namespace sparse_detr {
inline namespace SPARSE_DETR_ISA {

// Whether to read from a copy of one head's tokens. It pays with many queries: neighbouring tokens are then in the same
// cache lines and spread over all sets; the copy costs about 5% of a dense layer. Few queries read the value itself.
inline bool worth_packing(const Problem& p) { return p.heads > 1 && p.queries * 4 >= p.tokens; }

template <class T>
void pack(const Problem& p, int64_t image, int64_t head, T* to) {
  const T* from = static_cast<const T*>(p.value) + (image * p.tokens * p.heads + head) * p.channels;
  const size_t bytes = static_cast<size_t>(p.channels) * sizeof(T);
  for (int64_t token = 0; token < p.tokens; ++token)
    memcpy(to + token * p.channels, from + token * p.heads * p.channels, bytes);
}

// The queries of one task. Packed: those of one image and head. Otherwise: counted over all images, with all heads.
struct Range {
  int64_t image, head, begin, end;
};

inline int64_t parts_of_a_head(const Problem& p, int64_t threads) {
  const int64_t parts = (threads + p.images * p.heads - 1) / (p.images * p.heads);
  return parts < p.queries ? parts : p.queries;
}

inline int64_t query_tasks(const Problem& p, int64_t threads) {
  const int64_t all = p.images * p.queries;
  if (worth_packing(p)) return p.images * p.heads * parts_of_a_head(p, threads);
  return all < 8 * threads ? all : 8 * threads;
}

inline Range range_of(const Problem& p, int64_t threads, int64_t task) {
  const int64_t tasks = query_tasks(p, threads);
  if (!worth_packing(p)) {
    const int64_t all = p.images * p.queries;
    return {0, 0, all * task / tasks, all * (task + 1) / tasks};
  }
  const int64_t parts = parts_of_a_head(p, threads), part = task % parts, both = task / parts;
  return {both / p.heads, both % p.heads, p.queries * part / parts, p.queries * (part + 1) / parts};
}

// Prefetches the corners of the next place, one by one while those of this place are summed: all at once would fill the
// processor's queue of cache misses and leave it empty afterwards. (`ask_all` measured better for products.)
template <class T, class S, bool wanted>
struct Ahead {
  const int32_t* index;
  const T* values;

  SPARSE_DETR_INLINE Ahead from(int64_t channel) const { return {index, values + channel}; }

  SPARSE_DETR_INLINE void ask(int64_t i, int count) const {
    // Into L2, not L1: rows of a head are 1 KiB apart (8 heads of 32 channels in float32) and share few sets of L1.
    constexpr int into_l2 = 2;
    if constexpr (wanted) {
      const char* row = reinterpret_cast<const char*>(values + index[i]);
      for (int byte = 0; byte < count * static_cast<int>(sizeof(T)); byte += 64)
        __builtin_prefetch(row + byte, 0, into_l2);
    }
  }
  SPARSE_DETR_INLINE void ask_all(const Samples<T, S>& samples) const {
    for (int64_t s = 0; s < samples.count; ++s)
      for (int c = 0; c < 4; ++c) ask(c * samples.padded + s, static_cast<int>(samples.p.channels));
  }
};

// Runs body(slot, place, ahead) over n places. The indices of the next place are computed before it; without `prefetch`
// of corners, the rows of the tensors are prefetched `early` places ahead.
template <bool for_gradients, bool prefetch, class T, class S, class At, class Body>
SPARSE_DETR_INLINE void run_places(Samples<T, S>& samples, int64_t n, const T* base, const At& at, const Body& body) {
  constexpr int64_t early = 6;
  if (n > 0) samples.template prepare<for_gradients>(samples.slots[0], at(0));
  for (int64_t i = 0; i < n; ++i) {
    const Place place = at(i);
    const Place following = at(i + 1 < n ? i + 1 : i);
    const auto& next = samples.slots[(i + 1) & 1];
    if (i + 1 < n) samples.template prepare<for_gradients>(next, following);
    if (!prefetch && i + early < n) samples.prefetch_rows(at(i + early));
    const int64_t head = prefetch ? following.image * samples.p.tokens * samples.p.heads + following.head : 0;
    const auto& slot = samples.slots[i & 1];
    body(slot, place, Ahead<T, S, prefetch>{(i + 1 < n ? next : slot).index, base + head * samples.p.channels});
  }
}

template <class T, class S, int units, class Next>
SPARSE_DETR_INLINE void sum_rows(
    const Samples<T, S>& samples, const typename Samples<T, S>::Slot& slot, const Next& next, const T* values,
    T* output) {
  using C = Channels<T>;
  using Real = typename C::Real;
  constexpr int sums = units * C::parts;
  constexpr int chains = sums >= 8 ? 1 : sums >= 4 ? 2 : 4;  // enough to hide an addition's delay
  Real sum[chains][sums] = {};
  const int64_t padded = samples.padded;
  for (int64_t s = 0; s < samples.count; ++s) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const T* corner = values + slot.index[c * padded + s];
      const auto weight = slot.corner_weight[c * padded + s];
      next.ask(c * padded + s, units * C::width);
#pragma GCC unroll 8
      for (int u = 0; u < units; ++u) {
        Real row[C::parts];
        C::read(corner + u * C::width, row);
#pragma GCC unroll 2
        for (int k = 0; k < C::parts; ++k) sum[c % chains][u * C::parts + k] += row[k] * weight;
      }
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < units; ++u) {
    Real total[C::parts];
#pragma GCC unroll 2
    for (int k = 0; k < C::parts; ++k) {
      total[k] = sum[0][u * C::parts + k];
      for (int chain = 1; chain < chains; ++chain) total[k] += sum[chain][u * C::parts + k];
    }
    C::write(output + u * C::width, total);
  }
}

template <class T, class S, class Next>
SPARSE_DETR_INLINE void forward_place(
    const Samples<T, S>& samples, const typename Samples<T, S>::Slot& slot, const Next& next, const T* values,
    T* output) {
  using C = Channels<T>;
  const int64_t channels = samples.p.channels;
  int64_t d = 0;
  if constexpr (C::parts == 1)
    for (; d + 8 * C::width <= channels; d += 8 * C::width)
      sum_rows<T, S, 8>(samples, slot, next.from(d), values + d, output + d);
  for (; d + 4 * C::width <= channels; d += 4 * C::width)
    sum_rows<T, S, 4>(samples, slot, next.from(d), values + d, output + d);
  for (; d + 2 * C::width <= channels; d += 2 * C::width)
    sum_rows<T, S, 2>(samples, slot, next.from(d), values + d, output + d);
  for (; d + C::width <= channels; d += C::width)
    sum_rows<T, S, 1>(samples, slot, next.from(d), values + d, output + d);
  for (; d < channels; ++d) {
    typename Samples<T, S>::Scalar sum = 0;
    for (int64_t s = 0; s < samples.count; ++s)
      for (int c = 0; c < 4; ++c) {
        const int64_t i = c * samples.padded + s;
        sum += C::scalar(values[slot.index[i] + d]) * slot.corner_weight[i];
      }
    output[d] = C::narrow(sum);
  }
}

template <class T, class S>
void forward_task(const Problem& p, int64_t threads, int64_t task, Scratch& scratch) {
  const bool packed = worth_packing(p);
  const Range range = range_of(p, threads, task);
  T* output = static_cast<T*>(p.output);
  if (packed) {
    Samples<T, S> samples(p, p.channels, scratch);
    T* values = scratch.template take<T>(p.tokens * p.channels);
    pack(p, range.image, range.head, values);
    const auto at = [&](int64_t i) { return Place{range.image, range.begin + i, range.head}; };
    const int64_t places = range.end - range.begin;
    run_places<false, false>(samples, places, values, at, [&](const auto& slot, const Place& place, auto next) {
      const int64_t row = (place.image * p.queries + place.query) * p.heads + place.head;
      forward_place(samples, slot, next, values, output + row * p.channels);
    });
  } else {
    Samples<T, S> samples(p, p.heads * p.channels, scratch);
    const T* values = static_cast<const T*>(p.value);
    const auto at = [&](int64_t i) {
      const int64_t query = range.begin + i / p.heads;
      return Place{query / p.queries, query % p.queries, i % p.heads};
    };
    const int64_t places = (range.end - range.begin) * p.heads;
    run_places<false, true>(samples, places, values, at, [&](const auto& slot, const Place& place, auto next) {
      const int64_t row = (place.image * p.queries + place.query) * p.heads + place.head;
      const T* head = values + (place.image * p.tokens * p.heads + place.head) * p.channels;
      forward_place(samples, slot, next, head, output + row * p.channels);
    });
  }
}

// Bytes of a copy of one head, 0 where none is made.
template <class T>
int64_t head_bytes(const Problem& p) {
  return worth_packing(p) ? p.tokens * p.channels * static_cast<int64_t>(sizeof(T)) : 0;
}

template <class T, class S>
bool forward(const Problem& p, int64_t threads, int64_t begin, int64_t end) {
  Scratch scratch(Samples<T, S>::scratch_bytes(p) + head_bytes<T>(p) + 64);
  for (int64_t task = begin; task < end && !scratch.failed(); ++task) {
    scratch.reset();
    forward_task<T, S>(p, threads, task, scratch);
  }
  return !scratch.failed();
}

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr

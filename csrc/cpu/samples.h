// Indices and weights of the four corners of all samples of one query and head, in vectors: the lanes are samples.
#pragma once

#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../problem.h"
#include "vectors.h"

namespace sparse_detr {
inline namespace SPARSE_DETR_ISA {

// Memory that one task after the other cuts into pieces. A piece starts at a multiple of 64 bytes: a cache line and
// the widest vector.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    const int64_t step = bytes >= huge_page ? huge_page : line;
    const int64_t rounded = round_up(bytes, step);
    begin_ = next_ = static_cast<char*>(aligned_alloc(static_cast<size_t>(step), static_cast<size_t>(rounded)));
#if defined(__linux__)
    // Rows of a copied head are read at random, from more 4 KiB pages than the processor's first table of pages holds.
    if (begin_ != nullptr && step == huge_page) (void)madvise(begin_, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
  }
  ~Scratch() { free(begin_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool failed() const { return begin_ == nullptr; }
  void reset() { next_ = begin_; }
  template <class P>
  P* take(int64_t count) {
    P* piece = reinterpret_cast<P*>(next_);
    next_ += round_up(count * static_cast<int64_t>(sizeof(P)), line);
    return piece;
  }
  static constexpr int64_t round_up(int64_t bytes, int64_t step) { return (bytes + step - 1) / step * step; }
  static constexpr int64_t line = 64, huge_page = 2 << 20;

 private:
  char *begin_, *next_;
};

struct Place {
  int64_t image, query, head;
};

// T is the element type of the values, S that of positions and weights.
template <class T, class S>
class Samples {
 public:
  using Real = typename Channels<T>::Real;
  using Scalar = typename Lanes<Real>::Scalar;
  using Int = typename Lanes<Real>::Int;
  static constexpr int lanes = Lanes<Real>::count;

  // For the gradients: a vector of samples, besides their indices and corner weights.
  struct Group {
    Axis<Real> x, y;
    Real weight;
    Real x_scale, y_scale;  // pixels to a unit of the position
  };
  struct Slot {
    int32_t* index;         // [4, padded]: elements from the image's and head's first
    Scalar* corner_weight;  // [4, padded]
    Group* group;           // [padded / lanes]
  };

  // `stride`: elements from one token to the next, where the kernel will read or write.
  Samples(const Problem& problem, int64_t stride, Scratch& scratch)
      : p(problem), count(p.levels * p.points), padded((count + lanes - 1) / lanes * lanes) {
    width_ = scratch.take<Scalar>(padded);
    height_ = scratch.take<Scalar>(padded);
    row_ = scratch.take<int32_t>(padded);
    start_ = scratch.take<int32_t>(padded);
    level_ = scratch.take<int32_t>(padded);
    weight_ = scratch.take<Scalar>(padded);
    position_ = scratch.take<S>(2 * padded);
    logit_ = scratch.take<S>(padded);
    reference_ = scratch.take<Scalar>(4 * padded + lanes);
    for (Slot& slot : slots) {
      slot.index = scratch.take<int32_t>(4 * padded);
      slot.corner_weight = scratch.take<Scalar>(4 * padded);
      slot.group = scratch.take<Group>(padded / lanes);
    }
    stride_ = static_cast<int32_t>(stride);
    int64_t start = 0;
    for (int64_t s = 0; s < padded; ++s) {
      const bool real = s < count;
      const int64_t level = real ? s / p.points : 0;
      const int64_t height = real ? p.shapes[2 * level] : 1, width = real ? p.shapes[2 * level + 1] : 1;
      height_[s] = static_cast<Scalar>(height);
      width_[s] = static_cast<Scalar>(width);
      row_[s] = static_cast<int32_t>(width * stride);
      start_[s] = static_cast<int32_t>(real ? start * stride : 0);
      level_[s] = static_cast<int32_t>(level);
      if (real && (s + 1) % p.points == 0) start += height * width;
    }
  }

  static int64_t scratch_bytes(const Problem& p) {
    const int64_t padded = p.levels * p.points + lanes;
    const int64_t bytes = 20 * sizeof(Scalar) + 11 * sizeof(int32_t) + 3 * sizeof(S) + 2 * sizeof(Group) / lanes + 8;
    return padded * bytes + 32 * 64 + 64 * static_cast<int64_t>(sizeof(Group));
  }

  // Fills a slot for one query and head.
  template <bool for_gradients>
  __attribute__((noinline)) void prepare(const Slot& slot, const Place& at) {
    const int64_t row = (at.image * p.queries + at.query) * p.heads + at.head;
    // Local copies stay in registers; members would be loaded again after every vector that is stored, since the
    // compiler cannot rule out that it changed them.
    const int64_t count = this->count, padded = this->padded;
    int32_t* const index = slot.index;
    Scalar* const corner_weight = slot.corner_weight;
    const S* position = static_cast<const S*>(p.positions) + row * count * 2;
    const S* logit = static_cast<const S*>(p.weights) + row * count;
    if (count != padded) {  // whole vectors would read past the end
      copy(position_, position, 2 * count, 2 * padded, 0);
      copy(logit_, logit, count, padded, p.reference_size ? -INFINITY : 0);
      position = position_;
      logit = logit_;
    }
    attention(logit);
    const Scalar* reference = p.reference_size ? references(at) : nullptr;
    for (int64_t s = 0; s < padded; s += lanes) {
      Group of_its_own;  // where gradients want it, it is made in its slot: a copy took as long as computing it
      Group& g = for_gradients ? slot.group[s / lanes] : of_its_own;
      fill(g, position, reference, s);
      const CornerWeights<Real> weights = corner_weights(g.x, g.y, g.weight);
      const Int rows = Lanes<Real>::load_index(row_ + s), start = Lanes<Real>::load_index(start_ + s);
      const Int top = g.y.low * rows + start, bottom = g.y.high * rows + start;
      const Int left = g.x.low * stride_, right = g.x.high * stride_;
      Lanes<Real>::store_index(index + s, top + left);
      Lanes<Real>::store_index(index + padded + s, top + right);
      Lanes<Real>::store_index(index + 2 * padded + s, bottom + left);
      Lanes<Real>::store_index(index + 3 * padded + s, bottom + right);
      for (int c = 0; c < 4; ++c) store(corner_weight + c * padded + s, weights.at[c]);
    }
  }

  // Prefetches a place's rows of the tensors, since the rows of one head are far apart.
  SPARSE_DETR_INLINE void prefetch_rows(const Place& at) const {
    const int64_t row = (at.image * p.queries + at.query) * p.heads + at.head;
    const int64_t samples = count * static_cast<int64_t>(sizeof(S));
    const int64_t channels = p.channels * static_cast<int64_t>(sizeof(T));
    prefetch_row<0>(p.positions, row, 2 * samples);
    prefetch_row<0>(p.weights, row, samples);
    prefetch_row<0>(p.output_gradient, row, channels);
    // Stores retire in order, so that one that misses the cache holds up all that follow.
    prefetch_row<1>(p.output, row, channels);
    prefetch_row<1>(p.position_gradient, row, 2 * samples);
    prefetch_row<1>(p.weight_gradient, row, samples);
  }

  Slot slots[2];
  const Problem& p;
  const int64_t count, padded;

 private:
  template <int to_write>
  static SPARSE_DETR_INLINE void prefetch_row(const void* tensor, int64_t row, int64_t bytes) {
    if (tensor == nullptr) return;
    const char* const first = static_cast<const char*>(tensor) + row * bytes;
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(first + byte, to_write);
  }

  static void copy(S* to, const S* from, int64_t count, int64_t padded, float rest) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    for (int64_t i = count; i < padded; ++i) to[i] = Channels<S>::narrow(rest);
  }

  // Softmax over all samples, or the weights as they are, into weight_.
  SPARSE_DETR_INLINE void attention(const S* logit) {
    if (p.reference_size == 0) {
      for (int64_t s = 0; s < padded; s += lanes) store(weight_ + s, Channels<S>::samples(logit + s));
      return;
    }
    Scalar largest = -INFINITY, sum = 0;
    for (int64_t s = 0; s < padded; s += lanes) {
      const Scalar here = largest_of(Channels<S>::samples(logit + s));
      largest = here > largest ? here : largest;
    }
    const Real top = Real{} + largest;
    for (int64_t s = 0; s < padded; s += lanes) {
      const Real term = softmax_term(Channels<S>::samples(logit + s), top);
      store(weight_ + s, term);
      sum += sum_of(term);
    }
    const Scalar scale = 1 / sum;
    for (int64_t s = 0; s < padded; s += lanes) store(weight_ + s, load<Real>(weight_ + s) * scale);
  }

  // This query's references, at an address from which a whole vector can be read.
  SPARSE_DETR_INLINE const Scalar* references(const Place& at) {
    const int64_t size = p.levels * p.reference_size, row = at.image * p.queries + at.query;
    const Scalar* from = static_cast<const Scalar*>(p.references) + row * size;
    if ((p.images * p.queries - row) * size >= lanes) return from;
    for (int64_t i = 0; i < size; ++i) reference_[i] = from[i];
    return reference_;
  }

  SPARSE_DETR_INLINE Real reference_entry(const Scalar* reference, int64_t s, int entry) {
    const int size = static_cast<int>(p.reference_size);
#if !defined(__clang__)
    if (p.levels * size <= lanes)
      return __builtin_shuffle(load<Real>(reference), Lanes<Real>::load_index(level_ + s) * size + entry);
#endif
    Real result{};
    for (int i = 0; i < lanes; ++i) result[i] = reference[level_[s + i] * size + entry];
    return result;
  }

  SPARSE_DETR_INLINE void fill(Group& g, const S* position, const Scalar* reference, int64_t s) {
    const Real first = Channels<S>::samples(position + 2 * s), second = Channels<S>::samples(position + 2 * s + lanes);
    const Real x = picked<Alternate<0>>(first, second), y = picked<Alternate<1>>(first, second);
    const Real width = load<Real>(width_ + s), height = load<Real>(height_ + s), one = Lanes<Real>::all(1);
    g.weight = load<Real>(weight_ + s);
    if (p.reference_size == 0) {
      g.x = around(pixel_of_location(x, width), width);
      g.y = around(pixel_of_location(y, height), height);
      g.x_scale = width, g.y_scale = height;
      return;
    }
    g.x_scale = one, g.y_scale = one;
    if (p.reference_size == 4) {
      const Real half_over_points = one * static_cast<Scalar>(0.5 / static_cast<double>(p.points));
      g.x_scale = pixels_per_offset(reference_entry(reference, s, 2), width, half_over_points);
      g.y_scale = pixels_per_offset(reference_entry(reference, s, 3), height, half_over_points);
    }
    g.x = around(pixel_of_offset(reference_entry(reference, s, 0), x * g.x_scale, width), width);
    g.y = around(pixel_of_offset(reference_entry(reference, s, 1), y * g.y_scale, height), height);
  }

  Scalar *width_, *height_, *weight_, *reference_;
  int32_t *row_, *start_, *level_;
  int32_t stride_;
  S *position_, *logit_;
};

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr

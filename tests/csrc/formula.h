// A call of the op on tensors that are allocated to the byte, and its expected results: the formula in double, in which
// every sample looks at every pixel of its level.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/cuda/packs.cuh"
#include "../../csrc/problem.h"

namespace sparse_detr {

inline std::mt19937 generator(0);

inline int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

[[noreturn]] inline void fail(const std::string& what) {
  fprintf(stderr, "emulate: %s\n", what.c_str());
  exit(1);
}

// Numbers of a type, and the same in double. They start `shift` entries after an address that packs could use.
template <class T>
struct Tensor {
  std::vector<double> exact;
  std::unique_ptr<void, void (*)(void*)> memory;
  T* data;

  explicit Tensor(int64_t count, int64_t shift = 0)
      : exact(count), memory(malloc((count + shift) * sizeof(T)), free), data(static_cast<T*>(memory.get()) + shift) {
    memset(static_cast<void*>(data), 0xff, count * sizeof(T));
  }
  void set(int64_t i, double x) {
    data[i] = from_float<T>(static_cast<float>(x));
    exact[i] = to_float(data[i]);
  }
  void fill() {
    for (size_t i = 0; i < exact.size(); ++i) set(i, std::normal_distribution<double>(0, 1)(generator));
  }
};

// A sample's position on an axis (x: 0, y: 1) of its level, and how far an offset of 1 moves it, both in pixels.
struct Place {
  double pixel, scale;
};

inline Place place(const Problem& p, int64_t level, int axis, const double* reference, double position) {
  const double size = static_cast<double>(p.shapes[2 * level + 1 - axis]);
  if (p.reference_size == 0) return {position * size - 0.5, size};
  const double step = p.reference_size == 2 ? 1 / size : 0.5 * reference[2 + axis] / static_cast<double>(p.points);
  return {(reference[axis] + position * step) * size - 0.5, p.reference_size == 2 ? 1 : step * size};
}

// The linear weight of pixel i, and its derivative from the right; zero for NaN.
inline double hat(double pixel, int64_t i) { return std::abs(pixel - i) < 1 ? 1 - std::abs(pixel - i) : 0; }
inline double slope(double pixel, int64_t i) {
  return pixel >= i - 1 && pixel < i ? 1 : pixel >= i && pixel < i + 1 ? -1 : 0;
}

template <class T, class S>
struct Call {
  Problem p{};
  std::vector<int64_t> shapes;
  int64_t rows, samples;  // B x Q x M; L x P
  Tensor<T> value, gradient, output;
  Tensor<float> references, to_value;
  Tensor<S> positions, weights, to_positions, to_weights;

  Call(const Problem& sizes, const std::vector<int64_t>& levels, int64_t shift)
      : p(sizes), shapes(levels), rows(p.images * p.queries * p.heads), samples(p.levels * p.points),
        value(p.images * p.tokens * p.heads * p.channels, shift), gradient(rows * p.channels),
        output(rows * p.channels),
        references(p.images * p.queries * p.levels * p.reference_size), to_value(value.exact.size()),
        positions(2 * rows * samples), weights(rows * samples), to_positions(2 * rows * samples),
        to_weights(rows * samples) {
    p.shapes = shapes.data();
    value.fill(), gradient.fill(), weights.fill();
    for (size_t i = 0; i < references.exact.size(); ++i) {
      const bool centre = static_cast<int64_t>(i) % p.reference_size < 2;
      references.set(i, centre && between(0, 39) == 0 ? NAN : between(1, 64) / 64.);
    }
    for (size_t i = 0; i < positions.exact.size(); ++i) draw(i);
    p.value = value.data, p.positions = positions.data, p.weights = weights.data;
    p.references = p.reference_size ? references.data : nullptr;
  }

  int64_t level(int64_t sample) const { return sample % samples / p.points; }
  const double* reference(int64_t sample) const {
    return references.exact.data() + (sample / samples / p.heads * p.levels + level(sample)) * p.reference_size;
  }
  Place place_of(int64_t i) const {
    return place(p, level(i / 2), static_cast<int>(i % 2), reference(i / 2), positions.exact[i]);
  }

  // Draws a position inside, around or far outside the level. At the centres of pixels, where the gradient jumps, only
  // those that float32 meets exactly.
  void draw(int64_t i) {
    constexpr double huge[] = {NAN, INFINITY, -INFINITY, 3e38, -3e38, 1e9, -1e9};
    for (;;) {
      const int64_t kind = between(0, 19), size = shapes[2 * level(i / 2) + 1 - i % 2];
      if (kind < 2) return positions.set(i, huge[between(0, 6)]);
      const int64_t corners[] = {-2, -1, 0, size - 1, size, size + 1};
      const double pixel = kind < 8 ? corners[between(0, 5)] : between(-1500, 1000 * size + 500) / 1000.;
      const Place zero = place(p, level(i / 2), static_cast<int>(i % 2), reference(i / 2), 0);
      positions.set(i, (pixel - zero.pixel) / zero.scale);
      const double found = place_of(i).pixel, distance = std::abs(found - std::nearbyint(found));
      const bool powers = p.reference_size != 4 || (p.points & (p.points - 1)) == 0;
      if (!(distance <= 1e-3) || (distance == 0 && powers)) return;
    }
  }

  // Attention weights of the row's samples, as given or by softmax of the logits.
  std::vector<double> weights_of(int64_t row) const {
    std::vector<double> found(weights.exact.begin() + row * samples, weights.exact.begin() + (row + 1) * samples);
    if (p.reference_size == 0) return found;
    double sum = 0;
    for (double& x : found) sum += x = std::exp(x);
    for (double& x : found) x /= sum;
    return found;
  }

  // Fills `exact` of output and gradients: every sample looks at every pixel of its level.
  void formula() {
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<double> weight = weights_of(row);
      std::vector<double> alone(samples);  // of a sample before its weight: output's gradient x sampled value
      for (int64_t s = 0; s < samples; ++s) alone[s] = sample(row, s, weight[s]);
      double weighted = 0;
      for (int64_t s = 0; s < samples; ++s) weighted += weight[s] * alone[s];
      for (int64_t s = 0; s < samples; ++s)
        to_weights.exact[row * samples + s] = p.reference_size ? weight[s] * (alone[s] - weighted) : alone[s];
    }
  }

  double sample(int64_t row, int64_t s, double weight) {
    const int64_t index = row * samples + s, image = row / p.heads / p.queries, head = row % p.heads;
    const Place x = place_of(2 * index), y = place_of(2 * index + 1);
    int64_t token = 0;
    for (int64_t l = 0; l < level(index); ++l) token += shapes[2 * l] * shapes[2 * l + 1];
    double alone = 0, along_x = 0, along_y = 0;
    for (int64_t i = 0; i < shapes[2 * level(index)]; ++i)
      for (int64_t j = 0; j < shapes[2 * level(index) + 1]; ++j, ++token) {
        const double corner_weight = hat(x.pixel, j) * hat(y.pixel, i);
        const int64_t first = ((image * p.tokens + token) * p.heads + head) * p.channels;
        double dot = 0;
        for (int64_t d = 0; d < p.channels; ++d) {
          const double given = gradient.exact[row * p.channels + d];
          output.exact[row * p.channels + d] += weight * corner_weight * value.exact[first + d];
          to_value.exact[first + d] += weight * corner_weight * given;
          dot += value.exact[first + d] * given;
        }
        alone += corner_weight * dot;
        along_x += slope(x.pixel, j) * hat(y.pixel, i) * dot, along_y += hat(x.pixel, j) * slope(y.pixel, i) * dot;
      }
    to_positions.exact[2 * index] = weight * along_x * x.scale;
    to_positions.exact[2 * index + 1] = weight * along_y * y.scale;
    return alone;
  }

  std::string name() const {
    std::string text = std::to_string(sizeof(T)) + " and " + std::to_string(sizeof(S)) + " bytes,";
    const int64_t sizes[] = {p.images, p.queries, p.heads, p.channels, p.levels, p.points, p.reference_size};
    for (int64_t size : sizes) text += " " + std::to_string(size);
    return text + " (B Q M D L P, size of references)";
  }

  // Fails at a difference above 1e-5, as in the Python tests, or one rounding of the type, of the largest number.
  template <class E>
  void compare(const char* what, const Tensor<E>& found) const {
    const double rounding = std::is_same_v<E, float> ? 0 : std::is_same_v<E, __half> ? 0x1p-11 : 0x1p-8;
    double largest = 1e-3;
    for (double x : found.exact) largest = std::max(largest, std::abs(x));
    for (size_t i = 0; i < found.exact.size(); ++i)
      if (!(std::abs(to_float(found.data[i]) - found.exact[i]) <= (1e-5 + rounding) * largest))
        fail(
            std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(to_float(found.data[i])) +
            ", not " + std::to_string(found.exact[i]) + ": " + name());
  }
};

}  // namespace sparse_detr

// Vectors of the compiler (GCC and Clang), as wide as the instruction set that this object is compiled for.
#pragma once

#include <cstring>
#include <utility>

#include "../bilinear.h"

namespace sparse_detr {
inline namespace SPARSE_DETR_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

typedef float Floats __attribute__((vector_size(vector_bytes)));
typedef int32_t Ints __attribute__((vector_size(vector_bytes)));
typedef uint32_t Words __attribute__((vector_size(vector_bytes)));
typedef uint16_t HalfWords __attribute__((vector_size(vector_bytes / 2)));
typedef double Doubles __attribute__((vector_size(vector_bytes)));
typedef int64_t Longs __attribute__((vector_size(vector_bytes)));
typedef int32_t HalfInts __attribute__((vector_size(vector_bytes / 2)));

#define SPARSE_DETR_LAMBDA __attribute__((always_inline))

struct BFloat16 {
  uint16_t bits;
};

template <class V, class P>
SPARSE_DETR_INLINE V load(const P* from) {
  V v;
  memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class P>
SPARSE_DETR_INLINE void store(P* to, V v) {
  memcpy(to, &v, sizeof(V));
}

template <>
struct Lanes<Floats> {
  using Int = Ints;
  using Scalar = float;
  static constexpr int count = vector_bytes / 4;
  static constexpr int within = 4;  // in 16 bytes
  static SPARSE_DETR_INLINE Floats all(double x) { return Floats{} + static_cast<float>(x); }
  static SPARSE_DETR_INLINE Ints truncate(Floats x) { return __builtin_convertvector(x, Ints); }
  static SPARSE_DETR_INLINE Floats real(Ints x) { return __builtin_convertvector(x, Floats); }
  static SPARSE_DETR_INLINE void store_index(int32_t* to, Ints x) { store(to, x); }
  static SPARSE_DETR_INLINE Ints load_index(const int32_t* from) { return load<Ints>(from); }

  // For x <= 0: 2^n e^r with r in [-ln 2 / 2, ln 2 / 2], e^r by its Taylor series to r^7. Error below 2 ulp; NaN stays.
  static SPARSE_DETR_INLINE Floats exponential(Floats x) {
    const Floats low = all(-87.3);
    const Floats y = x < low ? low : x;
    const Ints n = truncate(y * 1.44269504088896341f - 0.5f);
    const Floats whole = real(n);
    const Floats r = (y - whole * 0.693145751953125f) - whole * 1.42860682030941723212e-6f;
    Floats sum = r * all(1.0 / 5040) + all(1.0 / 720);
    sum = sum * r + all(1.0 / 120);
    sum = sum * r + all(1.0 / 24);
    sum = sum * r + all(1.0 / 6);
    sum = sum * r + all(0.5);
    sum = sum * r + all(1);
    sum = sum * r + all(1);
    const Ints bits = (n + 127) << 23;
    Floats scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < low ? all(0) : sum * scale;
  }
};

template <>
struct Lanes<Doubles> {
  using Int = Longs;
  using Scalar = double;
  static constexpr int count = vector_bytes / 8;
  static constexpr int within = 2;
  static SPARSE_DETR_INLINE Doubles all(double x) { return Doubles{} + x; }
  static SPARSE_DETR_INLINE Longs truncate(Doubles x) { return __builtin_convertvector(x, Longs); }
  static SPARSE_DETR_INLINE Doubles real(Longs x) { return __builtin_convertvector(x, Doubles); }
  static SPARSE_DETR_INLINE void store_index(int32_t* to, Longs x) { store(to, __builtin_convertvector(x, HalfInts)); }
  static SPARSE_DETR_INLINE Longs load_index(const int32_t* from) {
    return __builtin_convertvector(load<HalfInts>(from), Longs);
  }
  static SPARSE_DETR_INLINE Doubles exponential(Doubles x) {  // libm is fast enough: float64 is for tests
    Doubles result{};
    for (int i = 0; i < count; ++i) result[i] = exp(x[i]);
    return result;
  }
};

// Shuffles of two vectors whose pattern is known when compiling.
template <class V, int... I>
SPARSE_DETR_INLINE V pick(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, typename Lanes<V>::Int{I...});
#endif
}

template <class Pattern, class V, int... I>
SPARSE_DETR_INLINE V picked(V a, V b, std::integer_sequence<int, I...>) {
  return pick(a, b, std::integer_sequence<int, Pattern::at(I)...>{});
}

template <class Pattern, class V>
SPARSE_DETR_INLINE V picked(V a, V b) {
  return picked<Pattern>(a, b, std::make_integer_sequence<int, Lanes<V>::count>{});
}

// Every second entry of a and b, which follow each other in memory.
template <int parity>
struct Alternate {
  static constexpr int at(int i) { return 2 * i + parity; }
};

// Every second entry within each 16 bytes, half of them from a and half from b: cheaper than across 16 bytes.
template <int parity, int count, int within>
struct AlternateWithin {
  static constexpr int at(int i) {
    const int half = within / 2, j = i % within;
    return (i - j) + 2 * (j % half) + parity + (j < half ? 0 : count);
  }
};

// Every second group of 16 bytes.
template <int parity, int count, int within>
struct AlternateGroups {
  static constexpr int at(int i) {
    const int half = count / within / 2, group = i / within;
    return (2 * (group % half) + parity) * within + i % within + (group < half ? 0 : count);
  }
};

// The lower (half = 0) or upper half of a's and b's entries in turn.
template <int half, int count>
struct Interleave {
  static constexpr int at(int i) { return half * count / 2 + i / 2 + (i % 2 == 0 ? 0 : count); }
};

// Sums over the lanes of `n` vectors part(first), part(first + 1)..., in the first n lanes, in order, by a tree of
// additions; n = count gives them all.
template <class V, int n, class Part>
SPARSE_DETR_INLINE V lane_sums(const Part& part, int first) {
  if constexpr (n == 1) {
    return part(first);
  } else {
    constexpr int count = Lanes<V>::count, within = Lanes<V>::within;
    const V a = lane_sums<V, n / 2>(part, first), b = lane_sums<V, n / 2>(part, first + n / 2);
    if constexpr (n <= within) {
      return picked<AlternateWithin<0, count, within>>(a, b) + picked<AlternateWithin<1, count, within>>(a, b);
    } else {
      return picked<AlternateGroups<0, count, within>>(a, b) + picked<AlternateGroups<1, count, within>>(a, b);
    }
  }
}

// Every entry's neighbour at a distance that is a power of two.
template <int distance>
struct Across {
  static constexpr int at(int i) { return i ^ distance; }
};

template <class V, int distance = Lanes<V>::count / 2>
SPARSE_DETR_INLINE typename Lanes<V>::Scalar sum_of(V v) {
  if constexpr (distance == 0)
    return v[0];
  else
    return sum_of<V, distance / 2>(v + picked<Across<distance>>(v, v));
}

template <class V, int distance = Lanes<V>::count / 2>
SPARSE_DETR_INLINE typename Lanes<V>::Scalar largest_of(V v) {
  if constexpr (distance == 0) {
    return v[0];
  } else {
    const V other = picked<Across<distance>>(v, v);
    return largest_of<V, distance / 2>(v > other ? v : other);
  }
}

// An element type in vectors: `width` channels are loaded at once into `parts` vectors. A vector of bfloat16
// splits into its even and its odd channels: two operations instead of the shuffles that the natural order needs.
template <class T>
struct Channels;

template <>
struct Channels<float> {
  using Real = Floats;
  static constexpr int parts = 1, width = vector_bytes / 4;
  static SPARSE_DETR_INLINE float scalar(float x) { return x; }
  static SPARSE_DETR_INLINE float narrow(float x) { return x; }
  static SPARSE_DETR_INLINE Floats samples(const float* from) { return load<Floats>(from); }
  static SPARSE_DETR_INLINE void store_samples(float* to, Floats v) { store(to, v); }
  static SPARSE_DETR_INLINE void read(const float* from, Floats* to) { to[0] = load<Floats>(from); }
  static SPARSE_DETR_INLINE void write(float* to, const Floats* from) { store(to, from[0]); }
};

template <>
struct Channels<double> {
  using Real = Doubles;
  static constexpr int parts = 1, width = vector_bytes / 8;
  static SPARSE_DETR_INLINE double scalar(double x) { return x; }
  static SPARSE_DETR_INLINE double narrow(double x) { return x; }
  static SPARSE_DETR_INLINE Doubles samples(const double* from) { return load<Doubles>(from); }
  static SPARSE_DETR_INLINE void store_samples(double* to, Doubles v) { store(to, v); }
  static SPARSE_DETR_INLINE void read(const double* from, Doubles* to) { to[0] = load<Doubles>(from); }
  static SPARSE_DETR_INLINE void write(double* to, const Doubles* from) { store(to, from[0]); }
};

template <>
struct Channels<BFloat16> {
  using Real = Floats;
  static constexpr int parts = 2, width = vector_bytes / 2;

  static SPARSE_DETR_INLINE float scalar(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
  }
  static SPARSE_DETR_INLINE BFloat16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return {static_cast<uint16_t>(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  }
  static SPARSE_DETR_INLINE Floats as_floats(Words bits) {
    Floats result;
    memcpy(&result, &bits, sizeof result);
    return result;
  }
  static SPARSE_DETR_INLINE Words rounded(Floats x) {  // to even; the result is in the upper halves
    Words bits;
    memcpy(&bits, &x, sizeof bits);
    const Words nan = Words{} + 0x7fc00000u;
    return x != x ? nan : bits + 0x7fff + ((bits >> 16) & 1);
  }
  static SPARSE_DETR_INLINE Floats samples(const BFloat16* from) {
    return as_floats(__builtin_convertvector(load<HalfWords>(from), Words) << 16);
  }
  static SPARSE_DETR_INLINE void store_samples(BFloat16* to, Floats v) {
    store(to, __builtin_convertvector(rounded(v) >> 16, HalfWords));
  }
  static SPARSE_DETR_INLINE void read(const BFloat16* from, Floats* to) {
    const Words both = load<Words>(from);
    to[0] = as_floats(both << 16);
    to[1] = as_floats(both & 0xffff0000u);
  }
  static SPARSE_DETR_INLINE void write(BFloat16* to, const Floats* from) {
    store(to, (rounded(from[0]) >> 16) | (rounded(from[1]) & 0xffff0000u));
  }
};

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr

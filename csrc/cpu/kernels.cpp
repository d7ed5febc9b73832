// One instruction set's table of kernels; compiled once for each, with -DSPARSE_DETR_ISA=base, avx2 or avx512.
#include "backward.h"

namespace sparse_detr {
inline namespace SPARSE_DETR_ISA {
namespace {

#define SPARSE_DETR_TEXT_(x) #x
#define SPARSE_DETR_TEXT(x) SPARSE_DETR_TEXT_(x)

// Calls run.operator()<T, S>() for the problem's element types; the op has checked that they are among these.
template <class Run>
auto by_type(const Problem& p, const Run& run) {
  switch (p.value_type) {
    case Element::float64:
      return run(double{}, double{});
    case Element::bfloat16:
      return p.sample_type == Element::bfloat16 ? run(BFloat16{}, BFloat16{}) : run(BFloat16{}, float{});
    default:
      return run(float{}, float{});
  }
}

int64_t unit(Element type) {
  switch (type) {
    case Element::float64:
      return Channels<double>::width;
    case Element::bfloat16:
      return Channels<BFloat16>::width;
    default:
      return Channels<float>::width;
  }
}

bool accumulates(const Problem& p) {
  return by_type(p, [&](auto t, auto) { return in_place<decltype(t)>(p); });
}

bool run_forward(const Problem& p, int64_t threads, int64_t begin, int64_t end) {
  return by_type(p, [&](auto t, auto s) { return forward<decltype(t), decltype(s)>(p, threads, begin, end); });
}

bool run_sample_gradients(const Problem& p, int64_t threads, int64_t begin, int64_t end) {
  return by_type(p, [&](auto t, auto s) { return sample_gradients<decltype(t), decltype(s)>(p, threads, begin, end); });
}

int64_t value_gradient_tasks(const Problem& p, int64_t threads) {
  return by_type(p, [&](auto t, auto) { return value_tasks<decltype(t)>(p, threads); });
}

bool run_value_gradients(const Problem& p, int64_t threads, int64_t begin, int64_t end) {
  return by_type(p, [&](auto t, auto s) { return value_gradients<decltype(t), decltype(s)>(p, threads, begin, end); });
}

}  // namespace

extern const CpuKernels kernels = {
    SPARSE_DETR_TEXT(SPARSE_DETR_ISA),
    unit,
    accumulates,
    query_tasks,
    run_forward,
    query_tasks,
    run_sample_gradients,
    value_gradient_tasks,
    run_value_gradients,
};

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr

// The kernels that were compiled, one table for each instruction set, and the choice among them.
#pragma once

#include "../problem.h"

namespace sparse_detr {

namespace base {
extern const CpuKernels kernels;
}
#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}
#endif

// Number of sets that this processor can run, narrowest first; `table` gets them.
inline int instruction_sets(const CpuKernels* table[3]) {
  int count = 0;
  table[count++] = &base::kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    table[count++] = &avx2::kernels;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      table[count++] = &avx512::kernels;
  }
#endif
  return count;
}

// The widest set whose vectors a head's channels fill; where none fits, the narrowest, which has the shortest rest.
inline const CpuKernels& fitting(const CpuKernels* const* table, int count, const Problem& problem) {
  for (int i = count - 1; i > 0; --i)
    if (problem.channels % table[i]->unit(problem.value_type) == 0) return *table[i];
  return *table[0];
}

}  // namespace sparse_detr

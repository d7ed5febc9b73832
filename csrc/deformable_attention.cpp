// The op's schema, and its kernels for the CPU. Those for CUDA register themselves from a library of their own.
#include "cpu/instruction_sets.h"
#include "entries.h"

#include <atomic>
#include <cstring>

namespace sparse_detr {
namespace {

class InstructionSets {
 public:
  static InstructionSets& get() {
    static InstructionSets sets;
    return sets;
  }
  // Narrows the choice, for tests and measurements; returns whether this processor can run it.
  bool limit(const char* name) {
    for (int i = 0; i < count_; ++i)
      if (strcmp(table_[i]->name, name) == 0) {
        used_ = i + 1;
        return true;
      }
    return false;
  }
  const char* widest() const { return table_[used_ - 1]->name; }
  const CpuKernels& choose(const Problem& problem) const { return fitting(table_, used_, problem); }

 private:
  InstructionSets() : count_(instruction_sets(table_)), used_(count_) {}
  const CpuKernels* table_[3] = {};
  int count_;
  std::atomic<int> used_;
};

using Run = bool (*)(const Problem&, int64_t, int64_t, int64_t);

void in_parallel(const Problem& problem, int64_t threads, int64_t tasks, Run run) {
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    if (!run(problem, threads, begin, end)) failed = true;
  });
  STD_TORCH_CHECK(!failed, "deformable_attention: no memory for a copy of one head's values");
}

void check_cpu(const Problem& p) {
  STD_TORCH_CHECK(
      p.value_type != Element::float16 && p.sample_type != Element::float16,
      "deformable_attention: float16 on the CPU; give float32 or bfloat16");
}

Tensor forward_cpu(
    const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references, const Tensor& positions,
    const Tensor& weights) {
  Problem problem = checked(value, shapes, references, positions, weights);
  check_cpu(problem);
  Tensor output = output_for(value, problem);
  if (empty(problem)) return torch::stable::fill_(output, 0.0);
  const CpuKernels& kernels = InstructionSets::get().choose(problem);
  const int64_t threads = torch::stable::get_num_threads();
  in_parallel(problem, threads, kernels.forward_tasks(problem, threads), kernels.forward);
  return output;
}

Gradients backward_cpu(
    const Tensor& gradient, const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* references,
    const Tensor& positions, const Tensor& weights, bool for_value, bool for_samples) {
  Problem problem = checked(value, shapes, references, positions, weights);
  check_cpu(problem);
  take_gradient(gradient, value, problem);
  const bool none = empty(problem);
  const CpuKernels& kernels = InstructionSets::get().choose(problem);
  const int64_t threads = torch::stable::get_num_threads();
  Tensor to_value = nothing_like(value), to_positions = nothing_like(positions), to_weights = nothing_like(weights);
  if (for_value) {
    to_value = torch::stable::empty_like(value);
    if (none || kernels.accumulates_in_place(problem)) torch::stable::zero_(to_value);
    problem.value_gradient = to_value.mutable_data_ptr();
    if (!none)
      in_parallel(problem, threads, kernels.value_gradient_tasks(problem, threads), kernels.value_gradient);
  }
  if (for_samples) {
    std::tie(to_positions, to_weights) = sample_gradients_for(positions, weights, problem);
    if (!none)
      in_parallel(problem, threads, kernels.sample_gradient_tasks(problem, threads), kernels.sample_gradient);
  }
  return {to_value, to_positions, to_weights};
}

}  // namespace
}  // namespace sparse_detr

STABLE_TORCH_LIBRARY(sparse_detr, m) {
  m.def("deformable_attention(Tensor value, SymInt[] shapes, Tensor locations, Tensor weights) -> Tensor");
  m.def(
      "deformable_attention_backward(Tensor gradient, Tensor value, SymInt[] shapes, Tensor locations, "
      "Tensor weights, bool for_value, bool for_samples) -> (Tensor, Tensor, Tensor)");
  m.def(
      "fused_deformable_attention(Tensor value, SymInt[] shapes, Tensor references, Tensor offsets, Tensor logits) "
      "-> Tensor");
  m.def(
      "fused_deformable_attention_backward(Tensor gradient, Tensor value, SymInt[] shapes, Tensor references, "
      "Tensor offsets, Tensor logits, bool for_value, bool for_samples) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_detr, CPU, m) {
  sparse_detr::Entries<sparse_detr::forward_cpu, sparse_detr::backward_cpu>::implement(m);
}

// For ctypes: a description of this build, and a limit to its instruction set.
extern "C" {
#define SPARSE_DETR_EXPORT __attribute__((visibility("default")))

SPARSE_DETR_EXPORT const char* sparse_detr_instruction_set() { return sparse_detr::InstructionSets::get().widest(); }

SPARSE_DETR_EXPORT int sparse_detr_limit_instruction_set(const char* name) {
  return sparse_detr::InstructionSets::get().limit(name);
}

SPARSE_DETR_EXPORT const char* sparse_detr_build() { return SPARSE_DETR_BUILD; }
}

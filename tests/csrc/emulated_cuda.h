// Enough of CUDA to run the kernels of csrc/cuda on a CPU, compiled by a plain C++ compiler; numbers of 16 bits and
// short vectors are those of the toolkit's own headers.
//
// Every thread of a block is a fiber. Fibers run one at a time, each up to the next shuffle or synchronisation of its
// warp, where the others catch up: so results repeat. A warp of which some lanes do not come is an error, and so is an
// atomic addition of four numbers that is not aligned. Before each block, shared memory is filled with NaN (as
// integers, -1); the bytes beyond those of the launch are poisoned for AddressSanitizer. Under ThreadSanitizer
// fibers count as threads that only __syncwarp brings into an order (a shuffle orders nothing, as in CUDA): it sees
// races that no run would show, among the threads of a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>
#include <vector_functions.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#undef __launch_bounds__
#define __launch_bounds__(...)
#ifdef EMULATED_ARCH  // after the toolkit's headers, which would otherwise write PTX
#define __CUDA_ARCH__ EMULATED_ARCH
#endif

// The memory that the kernels declare as `extern __shared__ int4 shared[]`.
namespace sparse_detr {
int4 shared[48 * 1024 / sizeof(int4)];
}

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulated {

// For functions of the emulator itself, whose memory ThreadSanitizer shall not watch.
#define EMULATOR __attribute__((noinline, no_sanitize("thread")))

constexpr int lanes_a_warp = 32;
constexpr size_t stack_bytes = 256 * 1024;

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulated CUDA: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  exit(1);
}

enum class Stop { none, shuffle, synchronisation, end };

// A thread of a block; also the scheduler, which runs on the caller's stack.
struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  size_t bytes = 0;
  void* frame = nullptr;   // AddressSanitizer's
  void* handle = nullptr;  // ThreadSanitizer's
  Stop stop = Stop::none;  // why it waits
  int line = 0, distance = 0;
  float given = 0, taken = 0;
};

class Block {
 public:
  // `backwards`: lanes and warps run from the last to the first.
  EMULATOR Block(int threads, const std::function<void()>& body, bool backwards)
      : body_(body), fibers_(threads), stacks_(threads), backwards_(backwards) {
    blockDim = dim3(static_cast<unsigned>(threads));
    current() = this;
    for (int i = 0; i < threads; ++i) stacks_[i].reset(new char[stack_bytes]), prepare(fibers_[i], stacks_[i].get());
#if defined(__SANITIZE_THREAD__)
    scheduler_.handle = __tsan_get_current_fiber();
#endif
  }
#if defined(__SANITIZE_THREAD__)
  EMULATOR ~Block() {
    for (Fiber& fiber : fibers_) __tsan_destroy_fiber(fiber.handle);
  }
#endif

  // One block after the other, by the same fibers.
  EMULATOR void run() {
    for (Fiber& fiber : fibers_) fiber.stop = Stop::none;
    hand_over(this);
    for (bool ended = false; !ended;) {
      ended = true;
      for (size_t i = 0; i < fibers_.size(); i += lanes_a_warp) {
        Fiber* warp = &fibers_[backwards_ ? fibers_.size() - lanes_a_warp - i : i];
        if (warp->stop == Stop::end) continue;
        step(warp);
        ended = ended && warp->stop == Stop::end;
      }
    }
    take_over(this);
  }

  // Called by a fiber: waits for the others of its warp.
  EMULATOR static float wait(Stop stop, int line, float given, int distance) {
    Fiber& fiber = current()->fibers_[threadIdx.x];
    void* const warp = &current()->fibers_[threadIdx.x / lanes_a_warp * lanes_a_warp];
    fiber.stop = stop, fiber.line = line, fiber.given = given, fiber.distance = distance;
    if (stop == Stop::synchronisation) hand_over(warp);
    change(fiber, current()->scheduler_);
    if (stop == Stop::synchronisation) take_over(warp);
    return fiber.taken;
  }

 private:
  // For ThreadSanitizer: what was written before `hand_over(place)` may be touched after `take_over(place)`.
  EMULATOR static void hand_over([[maybe_unused]] void* place) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(place);
#endif
  }
  EMULATOR static void take_over([[maybe_unused]] void* place) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(place);
#endif
  }

  EMULATOR static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

  EMULATOR static void enter() {
    Block* const block = current();
    Fiber& fiber = block->fibers_[threadIdx.x];
#if defined(__SANITIZE_ADDRESS__)
    const void* stack;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &block->scheduler_.bytes);
    block->scheduler_.stack = static_cast<char*>(const_cast<void*>(stack));
#endif
    for (;;) {
      take_over(block);
      block->body_();
      fiber.stop = Stop::end;
      hand_over(block);
      change(fiber, block->scheduler_);
    }
  }

  EMULATOR static void change(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.frame, to.stack, to.bytes);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to.handle, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&from.context, &to.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.frame, nullptr, nullptr);
#endif
  }

  EMULATOR static void prepare(Fiber& fiber, char* stack) {
    fiber.stack = stack, fiber.bytes = stack_bytes;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack, fiber.context.uc_stack.ss_size = stack_bytes;
    makecontext(&fiber.context, enter, 0);
#if defined(__SANITIZE_THREAD__)
    fiber.handle = __tsan_create_fiber(0);
#endif
  }

  // Runs all lanes of a warp up to where they wait next, and hands them what they wait for.
  EMULATOR void step(Fiber* warp) {
    const unsigned first = static_cast<unsigned>(warp - fibers_.data());
    for (int i = 0; i < lanes_a_warp; ++i) {
      const int lane = backwards_ ? lanes_a_warp - 1 - i : i;
      threadIdx.x = first + lane;
      change(scheduler_, warp[lane]);
    }
    for (int lane = 0; lane < lanes_a_warp; ++lane) {
      threadIdx.x = first + lane;
      Fiber& fiber = warp[lane];
      if (fiber.stop != warp->stop || fiber.line != warp->line) fail("some lanes of the warp are elsewhere");
      if (fiber.stop != Stop::shuffle) continue;
      if (fiber.distance != warp->distance) fail("lanes of the warp shuffle over different distances");
      fiber.taken = warp[(lane ^ fiber.distance) % lanes_a_warp].given;
    }
  }

  const std::function<void()>& body_;
  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<char[]>> stacks_;
  Fiber scheduler_;
  bool backwards_;
};

EMULATOR inline void fill_shared(size_t bytes) {
  volatile unsigned char* to = reinterpret_cast<unsigned char*>(sparse_detr::shared);
  for (size_t i = 0; i < bytes; ++i) to[i] = 0xff;
}

// Runs `body` as every thread of every block.
inline void launch(
    int64_t blocks, int threads, int64_t shared_bytes, bool backwards, const std::function<void()>& body) {
  constexpr int64_t most_bytes = sizeof(sparse_detr::shared);
  if (threads % lanes_a_warp != 0 || threads < 1 || threads > 1024) fail("a block is not of 1 to 32 whole warps");
  if (blocks < 1 || blocks >= int64_t{1} << 31) fail("there are not 1 to 2^31 - 1 blocks");
  if (shared_bytes < 0 || shared_bytes > most_bytes) fail("more shared memory than 48 KiB");
  gridDim = dim3(static_cast<unsigned>(blocks));
  Block block(threads, body, backwards);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(reinterpret_cast<char*>(sparse_detr::shared) + shared_bytes, most_bytes - shared_bytes);
#endif
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(backwards ? blocks - 1 - i : i);
    fill_shared(shared_bytes);
    block.run();
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(sparse_detr::shared, most_bytes);
#endif
}

}  // namespace emulated

inline void __syncwarp(unsigned mask = 0xffffffff, int line = __builtin_LINE()) {
  if (mask != 0xffffffff) emulated::fail("only whole warps are emulated");
  emulated::Block::wait(emulated::Stop::synchronisation, line, 0, 0);
}

inline float __shfl_xor_sync(unsigned mask, float x, int distance, int line = __builtin_LINE()) {
  if (mask != 0xffffffff) emulated::fail("only whole warps are emulated");
  return emulated::Block::wait(emulated::Stop::shuffle, line, x, distance);
}

inline float atomicAdd(float* to, float x) { return std::atomic_ref<float>(*to).fetch_add(x); }

inline float4 atomicAdd(float4* to, float4 x) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulated::fail("an addition of four numbers that is not aligned");
  float* const first = reinterpret_cast<float*>(to);
  return make_float4(
      atomicAdd(first, x.x), atomicAdd(first + 1, x.y), atomicAdd(first + 2, x.z), atomicAdd(first + 3, x.w));
}

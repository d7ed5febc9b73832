// The CPU kernels without torch, on tensors that are allocated to the byte, so that AddressSanitizer sees every access
// past an end: random shapes, sampling locations inside, at the edge, far outside and not finite. For `make sanitize`.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cpu/instruction_sets.h"
#include "../../csrc/cpu/samples.h"

using namespace sparse_detr;

// No byte is added to what is a multiple already.
static_assert(Scratch::round_up(0, 64) == 0 && Scratch::round_up(1, 64) == 64);
static_assert(Scratch::round_up(64, 64) == 64 && Scratch::round_up(65, 64) == 128);

namespace {

std::mt19937 generator(0);

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

int64_t bytes_of(Element type) { return type == Element::float64 ? 8 : type == Element::bfloat16 ? 2 : 4; }

float hostile() {
  switch (between(0, 9)) {
    case 0: return NAN;
    case 1: return INFINITY;
    case 2: return -INFINITY;
    case 3: return 3e38f;
    case 4: return -1e9f;
    case 5: return static_cast<float>(between(-3, 3)) / 2;
    default: return std::normal_distribution<float>(0, 3)(generator);
  }
}

std::unique_ptr<char[]> numbers(int64_t count, Element type, bool wild) {
  std::unique_ptr<char[]> data(new char[count * bytes_of(type)]);
  for (int64_t i = 0; i < count; ++i) {
    const float x = wild ? hostile() : std::normal_distribution<float>(0, 1)(generator);
    const double wide = x;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    char* to = data.get() + i * bytes_of(type);
    if (type == Element::float64) memcpy(to, &wide, 8);
    else if (type == Element::bfloat16) memcpy(to, &half, 2);
    else memcpy(to, &x, 4);
  }
  return data;
}

void run(const CpuKernels& kernels, Element value_type, Element sample_type, int64_t reference_size) {
  Problem p{};
  std::vector<int64_t> shapes;
  p.levels = between(1, 5);
  for (int64_t level = 0; level < p.levels; ++level) {
    shapes.push_back(between(1, 6));
    shapes.push_back(between(1, 6));
    p.tokens += shapes[2 * level] * shapes[2 * level + 1];
  }
  p.shapes = shapes.data();
  p.images = between(1, 2), p.heads = between(1, 5), p.channels = between(1, 70), p.queries = between(1, 40);
  p.points = between(1, 8), p.value_type = value_type, p.sample_type = sample_type, p.reference_size = reference_size;
  const int64_t rows = p.images * p.queries * p.heads, samples = rows * p.levels * p.points;
  const int64_t elements = p.images * p.tokens * p.heads * p.channels;
  const Element exact = value_type == Element::float64 ? Element::float64 : Element::float32;
  const auto value = numbers(elements, value_type, false), weights = numbers(samples, sample_type, false);
  const auto references = numbers(p.images * p.queries * p.levels * reference_size, exact, true);
  const auto positions = numbers(2 * samples, sample_type, true);
  const auto gradient = numbers(rows * p.channels, value_type, false);
  const auto output = numbers(rows * p.channels, value_type, false), to_value = numbers(elements, value_type, false);
  const auto to_positions = numbers(2 * samples, sample_type, false), to_weights = numbers(samples, sample_type, false);
  p.value = value.get(), p.weights = weights.get(), p.positions = positions.get(), p.output = output.get();
  p.references = reference_size ? references.get() : nullptr;
  p.output_gradient = gradient.get(), p.value_gradient = to_value.get();
  p.position_gradient = to_positions.get(), p.weight_gradient = to_weights.get();
  const int64_t threads = between(1, 3);
  const int64_t tasks = kernels.forward_tasks(p, threads), cut = between(0, tasks);
  kernels.forward(p, threads, 0, cut);
  kernels.forward(p, threads, cut, tasks);
  kernels.sample_gradient(p, threads, 0, kernels.sample_gradient_tasks(p, threads));
  kernels.value_gradient(p, threads, 0, kernels.value_gradient_tasks(p, threads));
  for (int64_t i = 0; value_type == Element::float32 && i < rows * p.channels; ++i)
    if (!std::isfinite(reinterpret_cast<const float*>(output.get())[i])) {
      fprintf(stderr, "%s: an output is not finite\n", kernels.name);
      exit(1);
    }
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? atoll(arguments[1]) : 100;
  const CpuKernels* table[3];
  const int sets = instruction_sets(table);
  for (int i = 0; i < sets; ++i) {
    for (int64_t round = 0; round < rounds; ++round)
      for (int64_t reference_size : {0, 2, 4}) {
        run(*table[i], Element::float32, Element::float32, reference_size);
        run(*table[i], Element::float64, Element::float64, reference_size);
        run(*table[i], Element::bfloat16, Element::float32, reference_size);
        if (reference_size) run(*table[i], Element::bfloat16, Element::bfloat16, reference_size);
      }
    printf("%s: %ld rounds without a report\n", table[i]->name, static_cast<long>(rounds));
  }
}

// How many rows of 128 bytes a second the L2 cache adds up, by the instruction that adds them; prints JSON.
//
// grad_value is summed this way: each sample adds four rows of 32 float32, scattered over an image's rows.
//
//   nvcc -O3 -std=c++17 -arch=sm_90 red_rate.cu -o red_rate && ./red_rate
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int kRow = 32;  // float32 of a row
constexpr int kThreads = 256, kBlocksPerSm = 8, kRounds = 64, kRepeats = 7;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

__device__ void add4(float* address, float x) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(__cvta_generic_to_global(address)),
               "f"(x)
               : "memory");
#else
  __trap();
#endif
}

__device__ void add1(float* address, float x) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "f"(x) : "memory");
}

// The row that a group of lanes adds in a round: all its lanes compute the same one. These 20 instructions a
// round are few beside the vector additions; the rate of scalars is a lower bound.
__device__ float* row_of(float* table, uint32_t rows, uint32_t group, int round) {
  uint32_t mixed = group * 0x9e3779b9u + static_cast<uint32_t>(round) * 0x85ebca6bu;
  mixed = (mixed ^ (mixed >> 16)) * 0x7feb352du;
  mixed = (mixed ^ (mixed >> 15)) * 0x846ca68bu;
  mixed ^= mixed >> 16;
  return table + int64_t{kRow} * __umulhi(mixed, rows);
}

// One instruction of 8 lanes covers a row: every sector of 32 bytes whole.
struct FullSectors {
  static constexpr const char* kName = "v4, full sectors";
  static constexpr int kLanes = 8;
  static __device__ void add(float* row, int lane, float x) { add4(row + 4 * lane, x); }
};

// A lane owns 8 neighbours and adds them by two instructions, each of which covers half of every sector.
struct HalfSectors {
  static constexpr const char* kName = "v4, half sectors";
  static constexpr int kLanes = 4;
  static __device__ void add(float* row, int lane, float x) {
    add4(row + 8 * lane, x);
    add4(row + 8 * lane + 4, x);
  }
};

// One instruction of a warp covers a row.
struct Scalars {
  static constexpr const char* kName = "scalar";
  static constexpr int kLanes = 32;
  static __device__ void add(float* row, int lane, float x) { add1(row + lane, x); }
};

template <class Pattern>
__global__ void __launch_bounds__(kThreads) add_rows(float* table, uint32_t rows, float x) {
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t group = thread / Pattern::kLanes;
  for (int round = 0; round < kRounds; ++round) {
    Pattern::add(row_of(table, rows, group, round), thread % Pattern::kLanes, x);
  }
}

template <class Pattern>
void measure(float* table, uint32_t rows, const char* where, int blocks, const char* end) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  // As many additions for every pattern.
  const int launches = Pattern::kLanes;
  const double added = double{kThreads} * blocks * kRounds;
  check(cudaMemset(table, 0, sizeof(float) * kRow * rows), "memset");
  std::vector<float> times;
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {  // the first warms up
    check(cudaEventRecord(start), "record");
    for (int launch = 0; launch < launches; ++launch)
      add_rows<Pattern><<<blocks, kThreads>>>(table, rows, 1.0f);
    check(cudaEventRecord(stop), "record");
    check(cudaEventSynchronize(stop), "add_rows");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop), "time");
    if (repeat > 0) times.push_back(ms);
  }
  std::vector<float> sums(size_t{kRow} * rows);
  check(cudaMemcpy(sums.data(), table, sizeof(float) * sums.size(), cudaMemcpyDeviceToHost), "copy");
  double total = 0;
  for (float sum : sums) total += sum;
  // Exact up to 2^24 additions to one number.
  const double expected = added * (kRepeats + 1) * kRow;
  std::sort(times.begin(), times.end());
  const double seconds = times[times.size() / 2] / 1e3;
  std::printf(
      "  {\"pattern\": \"%s\", \"rows\": \"%s\", \"table_rows\": %u, \"ms\": %.5f, \"rows_per_s\": %.5g, ",
      Pattern::kName, where, rows, 1e3 * seconds, added / seconds);
  std::printf("\"float32_per_s\": %.5g, \"right\": %s}%s\n", added * kRow / seconds,
              total == expected ? "true" : "false", end);
}

void measure_all(float* table, uint32_t rows, const char* where, int blocks, const char* end) {
  measure<FullSectors>(table, rows, where, blocks, ",");
  measure<HalfSectors>(table, rows, where, blocks, ",");
  measure<Scalars>(table, rows, where, blocks, end);
}

}  // namespace

int main() {
  int device = 0, multiprocessors = 0, major = 0;
  check(cudaGetDevice(&device), "no CUDA device");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "attribute");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "attribute");
  if (major < 9) {
    std::fprintf(stderr, "red.v4.f32 needs compute capability 9.0, this GPU has %d.x\n", major);
    return 1;
  }
  // Of an image of 800x1333 with 8 heads: all rows, and the 13x21 rows of the coarsest level.
  const uint32_t all = 22223u * 8, coarsest = 13u * 21u * 8;
  float* table = nullptr;
  check(cudaMalloc(&table, sizeof(float) * kRow * all), "malloc");
  std::printf("[\n");
  measure_all(table, all, "an image's", multiprocessors * kBlocksPerSm, ",");
  measure_all(table, coarsest, "the coarsest level's", multiprocessors * kBlocksPerSm, "");
  std::printf("]\n");
  return 0;
}

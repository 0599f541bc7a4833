// The kernels of ms_deform_attn and fused_ms_deform_attn for one instruction set, every dtype and number of
// channels.
#include "cpu.h"
#include "cpu_backward_samples.h"
#include "cpu_forward.h"
#include "cpu_gather_value.h"
#include "cpu_scatter_value.h"

namespace dino_kernels::DINO_CPU_VARIANT {

// Calls f with the Channels for the call's dtype and number of channels.
template <class F>
DINO_INLINE auto with_channels(const CpuParams& p, F f) {
  const auto with_dtype = [&]<class T>(T) {
    constexpr int kWidth = kLanes<typename Compute<T>::type>;
    switch (p.D % kWidth ? 0 : p.D / kWidth) {
      case 1:
        return f(Channels<T, 1>{});
      case 2:
        return f(Channels<T, 2>{});
      case 4:
        return f(Channels<T, 4>{});
      case 8:
        return f(Channels<T, 8>{});
      default:
        return f(Channels<T, 0>{});
    }
  };
  switch (p.dtype) {
    case DType::float64:
      return with_dtype(double{});
    case DType::bfloat16:
      return with_dtype(BFloat16{});
    case DType::float16:
      return with_dtype(Half{});
    default:
      return with_dtype(float{});
  }
}

template <template <class, int> class Kernel>
static int64_t scratch_bytes(const CpuParams& p) {
  return with_channels(p, [&]<class T, int kVectors>(Channels<T, kVectors>) {
    return Kernel<T, kVectors>(p, Scratch{nullptr}).bytes;
  });
}
template <template <class, int> class Kernel>
static void run(const CpuParams& p, int64_t begin, int64_t end, void* scratch) {
  with_channels(p, [&]<class T, int kVectors>(Channels<T, kVectors>) {
    Kernel<T, kVectors>(p, Scratch{static_cast<char*>(scratch)}).run(begin, end);
  });
}
template <template <class, int> class Kernel>
constexpr CpuKernel kernel = {scratch_bytes<Kernel>, run<Kernel>};

extern const CpuKernels ms_deform_attn;
const CpuKernels ms_deform_attn = {DINO_VECTOR_BYTES, kernel<Forward>, kernel<BackwardSamples>,
                                   kernel<ScatterValue>, kernel<GatherValue>};

}  // namespace dino_kernels::DINO_CPU_VARIANT

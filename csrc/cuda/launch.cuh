// Helpers for launching CUDA kernels.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>

namespace maskrcnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// Makes a tensor's device the current one during its lifetime, and provides the stream to launch on.
class Launch {
  public:
    explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
        void* stream = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }

    cudaStream_t stream() const { return stream_; }

    // Number of blocks for `count` items; kernels process further items in a loop.
    static unsigned blocks(int64_t count, int threads = kThreads) {
        return static_cast<unsigned>(std::clamp<int64_t>((count + threads - 1) / threads, 1, 1 << 20));
    }

    // Whether the current device can add four floats atomically; kernels use it if they are compiled for it.
    static bool has_wide_atomics() {
        int device = 0, major = 0;
        STD_CUDA_CHECK(cudaGetDevice(&device));
        STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
        return major >= 9;
    }

  private:
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_;
};

// Calls run(Pixel(), T()) for maps of this type.
template <typename Run>
void with_types(ScalarType maps, const Run& run) {
    switch (maps) {
        case ScalarType::Half:
            return run(c10::Half(), float());
        case ScalarType::BFloat16:
            return run(c10::BFloat16(), float());
        case ScalarType::Double:
            return run(double(), double());
        default:
            return run(float(), float());
    }
}

// Loop over the items of a thread, of which there may be more than threads.
#define MASKRCNN_FOR_EACH(index, count)                                                                \
    for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < (count); \
         index += static_cast<int64_t>(gridDim.x) * blockDim.x)

}  // namespace maskrcnn

// Neighbouring channels of a map that one thread processes.
#pragma once

#include <cmath>

#include "launch.cuh"

namespace maskrcnn {

// Loaded and stored at once.
template <typename Pixel, int kCount>
struct alignas(sizeof(Pixel) * kCount) Channels {
    Pixel value[kCount];
};

// Sums of weighted channels. (These come by value: through a reference they would be loaded one by one.)
template <typename T, int kCount>
struct Sums {
    T value[kCount] = {};

    template <typename Pixel>
    __device__ void add(T weight, Channels<Pixel, kCount> channels) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) value[i] = std::fma(weight, static_cast<T>(channels.value[i]), value[i]);
    }

    template <typename Pixel>
    __device__ Channels<Pixel, kCount> over(T points) const {
        Channels<Pixel, kCount> result;
#pragma unroll
        for (int i = 0; i < kCount; ++i) result.value[i] = static_cast<Pixel>(value[i] / points);
        return result;
    }
};

// *place += weight * channels, atomically.
template <typename T, int kCount>
__device__ void add_atomically(Channels<T, kCount>* place, T weight, const Channels<T, kCount>& channels) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) atomicAdd(&place->value[i], weight * channels.value[i]);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// One instruction for four floats on devices that have it.
__device__ inline void add_atomically(Channels<float, 4>* place, float weight, const Channels<float, 4>& channels) {
    const float* value = channels.value;
    atomicAdd(reinterpret_cast<float4*>(place),
              make_float4(weight * value[0], weight * value[1], weight * value[2], weight * value[3]));
}
#endif

}  // namespace maskrcnn

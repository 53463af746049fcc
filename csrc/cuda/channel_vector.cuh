// Neighbouring channels of a map that one thread processes.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cmath>
#include <type_traits>

#include "launch.cuh"

namespace maskrcnn {

// Loaded and stored at once.
template <typename Pixel, int kCount>
struct alignas(sizeof(Pixel) * kCount) ChannelVector {
    Pixel value[kCount];
};

template <typename T, typename Pixel, int kCount>
__device__ T read_channel(const ChannelVector<Pixel, kCount>& channels, int i) {
    if constexpr (std::is_same_v<Pixel, c10::BFloat16> && kCount % 2 == 0) {
        // The upper half of a float: two of them are in 32 bits, and each takes one instruction.
        const unsigned pair = reinterpret_cast<const unsigned*>(&channels)[i / 2];
        return __uint_as_float(i % 2 ? pair & 0xffff0000 : pair << 16);
    } else {
        return static_cast<T>(channels.value[i]);
    }
}

// Sums of weighted channels. (These come by value: through a reference they would be loaded one by one.)
template <typename T, int kCount>
struct ChannelSums {
    T value[kCount] = {};

    template <typename Pixel>
    __device__ void add(T weight, ChannelVector<Pixel, kCount> channels) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) value[i] = std::fma(weight, read_channel<T>(channels, i), value[i]);
    }

    __device__ void add(T weight, const ChannelSums& sums) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) value[i] = std::fma(weight, sums.value[i], value[i]);
    }

    template <typename Pixel>
    __device__ ChannelVector<Pixel, kCount> rounded() const {
        ChannelVector<Pixel, kCount> result;
#pragma unroll
        for (int i = 0; i < kCount; ++i) result.value[i] = static_cast<Pixel>(value[i]);
        return result;
    }
};

// *place += sums, each channel atomically.
template <typename T, int kCount>
__device__ void add_atomically(ChannelVector<T, kCount>* place, const ChannelSums<T, kCount>& sums) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) atomicAdd(&place->value[i], sums.value[i]);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// One instruction for four floats on devices that have it.
__device__ inline void add_atomically(ChannelVector<float, 4>* place, const ChannelSums<float, 4>& sums) {
    const float* value = sums.value;
    atomicAdd(reinterpret_cast<float4*>(place), make_float4(value[0], value[1], value[2], value[3]));
}
#endif

}  // namespace maskrcnn

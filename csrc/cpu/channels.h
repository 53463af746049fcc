// Vectors of neighbouring channels of a pixel. 16-bit numbers are converted to float32 when they are read, summed in
// float32 and rounded once.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#include "instruction_set.h"
#include "simd.h"

namespace maskrcnn {
namespace MASKRCNN_SET {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

// The instance of a function template for the maps' dtype.
#define MASKRCNN_FOR_DTYPE(type, function)                 \
    ((type) == ScalarType::Double     ? function<double>   \
     : (type) == ScalarType::BFloat16 ? function<BFloat16> \
     : (type) == ScalarType::Half     ? function<Half>     \
                                      : function<float>)

// How neighbouring channels, stored as T, are read as numbers of type Sum, and written.
template <typename T>
struct Channels {
    using Sum = T;
    using Vec = typename Simd<T>::Vec;
    static constexpr int kLanes = Simd<T>::kLanes;

    using AnyAddress = typename Simd<T>::AnyAddress;
    static MASKRCNN_INLINE Vec load(const T* from) { return *reinterpret_cast<const AnyAddress*>(from); }
    static MASKRCNN_INLINE void store(T* to, Vec value) { *reinterpret_cast<AnyAddress*>(to) = value; }
};

typedef uint16_t Bits16 __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t Bits32 __attribute__((vector_size(32), aligned(4), may_alias));

MASKRCNN_INLINE Bits32 load_bits(const void* from) {
#if defined(MASKRCNN_SET_avx2) || defined(MASKRCNN_SET_avx512)
    // one instruction; GCC makes four of the conversion below
    return reinterpret_cast<Bits32>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
#else
    return __builtin_convertvector(*static_cast<const Bits16*>(from), Bits32);
#endif
}

template <>
struct Channels<BFloat16> : Channels<float> {
    static MASKRCNN_INLINE Vec load(const BFloat16* from) { return reinterpret_cast<Vec>(load_bits(from) << 16); }
    static MASKRCNN_INLINE void store(BFloat16* to, Vec value) {
        const Bits32 bits = reinterpret_cast<Bits32>(value);
        const Bits32 rounded = bits + 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
        const Bits32 nan = reinterpret_cast<Bits32>(value != value);
        *reinterpret_cast<Bits16*>(to) = __builtin_convertvector(((rounded & ~nan) | (0x7fc00000 & nan)) >> 16, Bits16);
    }
};

template <>
struct Channels<Half> : Channels<float> {
    // The exponent and mantissa of 5 + 10 bits, moved into place and scaled by the difference of the biases, 127 - 15;
    // numbers below the smallest normal one come out right too.
    static MASKRCNN_INLINE Vec load(const Half* from) {
        const Bits32 bits = load_bits(from);
        const Vec scaled = reinterpret_cast<Vec>((bits & 0x7fff) << 13) * 0x1p112f;
        const Bits32 infinite = reinterpret_cast<Bits32>((bits & 0x7c00) == 0x7c00) & 0x7f800000;  // or NaN
        return reinterpret_cast<Vec>(reinterpret_cast<Bits32>(scaled) | infinite | ((bits & 0x8000) << 16));
    }
    static MASKRCNN_INLINE void store(Half* to, Vec value) {
        for (int i = 0; i < Simd<float>::kLanes; ++i) to[i] = Half(value[i]);
    }
};

// The same for a single channel: the remainder after whole vectors.
template <typename T>
struct OneChannel {
    using Sum = typename Channels<T>::Sum;
    using Vec = Sum;
    static constexpr int kLanes = 1;

    static MASKRCNN_INLINE Vec load(const T* from) { return static_cast<Sum>(*from); }
    static MASKRCNN_INLINE void store(T* to, Vec value) { *to = static_cast<T>(value); }
};

// T: element type of the map; a block is kVecs vectors of Lanes<T>.
template <typename T_, template <typename> class Lanes_, int kVecs_>
struct BlockOf {
    using T = T_;
    using Lanes = Lanes_<T>;
    using Sum = typename Lanes::Sum;
    using SumLanes = Lanes_<Sum>;
    using Vec = typename Lanes::Vec;
    static constexpr int kVecs = kVecs_, kLanes = Lanes::kLanes, kWidth = kVecs * kLanes;
};
template <typename T, int kVecs = 8>  // as many sums at a time as hide the latency of a multiply-add
using WideBlock = BlockOf<T, Channels, kVecs>;
template <typename T>
using NarrowBlock = BlockOf<T, Channels, 1>;
template <typename T>
using SingleBlock = BlockOf<T, OneChannel, 1>;

// Calls run(block, c) for the blocks of channels, which start at c.
template <typename T, int kVecs = 8, typename Run>
MASKRCNN_INLINE void for_blocks(int64_t channels, const Run& run) {
    using Wide = WideBlock<T, kVecs>;
    int64_t c = 0;
    for (; c + Wide::kWidth <= channels; c += Wide::kWidth) run(Wide(), c);
    for (; c + NarrowBlock<T>::kWidth <= channels; c += NarrowBlock<T>::kWidth) run(NarrowBlock<T>(), c);
    for (; c < channels; ++c) run(SingleBlock<T>(), c);
}

template <typename Lanes, int kVecs, typename From>
MASKRCNN_INLINE void load_all(typename Lanes::Vec* values, const From* from) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) values[i] = Lanes::load(from + i * Lanes::kLanes);
}
template <typename Lanes, int kVecs, typename To>
MASKRCNN_INLINE void store_all(To* to, const typename Lanes::Vec* values) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) Lanes::store(to + i * Lanes::kLanes, values[i]);
}

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

// Winograd's transforms for 3x3 convolutions with tiles of 4x4 outputs, F(4x4, 3x3): y = A^T [(G g G^T) * (B^T d B)] A
// (Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4 and equations 13 to 16). 36
// multiplications make 16 outputs that take 144 otherwise.
//
// The interpolation points are 0, +-5/8, +-3/2 and infinity: with them the relative error of float32 sums of 256
// channels is 1e-6, half of that with the paper's 0, +-1, +-2; the error of direct convolution is 0.8e-6.
//
// Each function is one of the matrices applied along one axis, to vectors of channels.
#pragma once

#include "instruction_set.h"

namespace maskrcnn::MASKRCNN_SET::winograd {

constexpr int kOut = 4, kIn = 6, kTap = 3;
constexpr int kPoints = kIn * kIn;  // products of a tile

constexpr float kA = 0.625f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB, kA3 = kA2 * kA, kB3 = kB2 * kB;
// The divisor of the taps at each point: the product of its distances to the other finite points.
constexpr float kAt0 = 1 / (kA2 * kB2), kAtA = 1 / (2 * kA2 * (kA2 - kB2)), kAtB = 1 / (2 * kB2 * (kB2 - kA2));

// B^T: 6 inputs
struct Input {
    static constexpr int kFrom = kIn, kTo = kIn;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* d, V* to) {
        const V a = d[4] - kB2 * d[2], b = kA * d[3] - (kA * kB2) * d[1];
        const V c = d[4] - kA2 * d[2], e = kB * d[3] - (kA2 * kB) * d[1];
        to[0] = (kA2 * kB2) * d[0] - (kA2 + kB2) * d[2] + d[4];
        to[1] = a + b;
        to[2] = a - b;
        to[3] = c + e;
        to[4] = c - e;
        to[5] = (kA2 * kB2) * d[1] - (kA2 + kB2) * d[3] + d[5];
    }
};

// A^T: 4 outputs
struct Output {
    static constexpr int kFrom = kIn, kTo = kOut;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* m, V* to) {
        const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
        to[0] = m[0] + a + c;
        to[1] = kA * b + kB * e;
        to[2] = kA2 * a + kB2 * c;
        to[3] = kA3 * b + kB3 * e + m[5];
    }
};

// A: gradients of 4 outputs
struct OutputGradient {
    static constexpr int kFrom = kOut, kTo = kIn;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* y, V* to) {
        const V a = y[0] + kA2 * y[2], b = kA * y[1] + kA3 * y[3];
        const V c = y[0] + kB2 * y[2], e = kB * y[1] + kB3 * y[3];
        to[0] = y[0];
        to[1] = a + b;
        to[2] = a - b;
        to[3] = c + e;
        to[4] = c - e;
        to[5] = y[3];
    }
};

// G: 3 taps
struct Weight {
    static constexpr int kFrom = kTap, kTo = kIn;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* g, V* to) {
        const V a = kAtA * g[0] + (kAtA * kA2) * g[2], b = (kAtA * kA) * g[1];
        const V c = kAtB * g[0] + (kAtB * kB2) * g[2], e = (kAtB * kB) * g[1];
        to[0] = kAt0 * g[0];
        to[1] = a + b;
        to[2] = a - b;
        to[3] = c + e;
        to[4] = c - e;
        to[5] = g[2];
    }
};

// G^T: gradients of 3 taps
struct WeightGradient {
    static constexpr int kFrom = kIn, kTo = kTap;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* u, V* to) {
        const V a = kAtA * (u[1] + u[2]), b = (kAtA * kA) * (u[1] - u[2]);
        const V c = kAtB * (u[3] + u[4]), e = (kAtB * kB) * (u[3] - u[4]);
        to[0] = kAt0 * u[0] + a + c;
        to[1] = b + e;
        to[2] = kA2 * a + kB2 * c + u[5];
    }
};

// Both axes: `from` [kFrom][kFrom], rows one after another, to `to` [kTo][kTo].
template <typename T, typename V>
MASKRCNN_INLINE void transform(const V* from, V* to) {
    V half[T::kTo * T::kFrom], column[T::kFrom], done[T::kTo];
#pragma GCC unroll 6
    for (int x = 0; x < T::kFrom; ++x) {
#pragma GCC unroll 6
        for (int y = 0; y < T::kFrom; ++y) column[y] = from[y * T::kFrom + x];
        T::apply(column, done);
#pragma GCC unroll 6
        for (int y = 0; y < T::kTo; ++y) half[y * T::kFrom + x] = done[y];
    }
#pragma GCC unroll 6
    for (int y = 0; y < T::kTo; ++y) T::apply(half + y * T::kFrom, to + y * T::kTo);
}

}  // namespace maskrcnn::MASKRCNN_SET::winograd

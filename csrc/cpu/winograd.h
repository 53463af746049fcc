// Winograd's transforms for 3x3 convolutions with tiles of 4x4 outputs, F(4x4, 3x3): y = A^T [(G g G^T) * (B^T d B)] A
// (Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4 and equations 13 to 16). 36
// multiplications make 16 outputs that take 144 otherwise.
//
// Each function is one of the matrices applied along one axis, to vectors of channels.
#pragma once

#include "multiversion.h"

namespace maskrcnn::winograd {

constexpr int kOut = 4, kIn = 6, kTap = 3;
constexpr int kPoints = kIn * kIn;  // products of a tile

// B^T: 6 inputs
struct Input {
    static constexpr int kFrom = kIn, kTo = kIn;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* d, V* to) {
        const V a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
        to[0] = 4 * d[0] - 5 * d[2] + d[4];
        to[1] = a + b;
        to[2] = a - b;
        to[3] = c + e;
        to[4] = c - e;
        to[5] = 4 * d[1] - 5 * d[3] + d[5];
    }
};

// A^T: 4 outputs
struct Output {
    static constexpr int kFrom = kIn, kTo = kOut;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* m, V* to) {
        const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
        to[0] = m[0] + a + c;
        to[1] = b + 2 * e;
        to[2] = a + 4 * c;
        to[3] = b + 8 * e + m[5];
    }
};

// A: gradients of 4 outputs
struct OutputGradient {
    static constexpr int kFrom = kOut, kTo = kIn;
    template <typename V>
    static MASKRCNN_INLINE void apply(const V* y, V* to) {
        const V a = y[0] + y[2], b = y[1] + y[3], c = y[0] + 4 * y[2], e = 2 * y[1] + 8 * y[3];
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
        const V a = (g[0] + g[2]) * (-1.0f / 6), b = g[1] * (-1.0f / 6);
        const V c = g[0] * (1.0f / 24) + g[2] * (1.0f / 6), e = g[1] * (1.0f / 12);
        to[0] = g[0] * 0.25f;
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
        const V a = u[1] + u[2], b = u[1] - u[2], c = u[3] + u[4], e = u[3] - u[4];
        to[0] = u[0] * 0.25f - a * (1.0f / 6) + c * (1.0f / 24);
        to[1] = e * (1.0f / 12) - b * (1.0f / 6);
        to[2] = (c - a) * (1.0f / 6) + u[5];
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

}  // namespace maskrcnn::winograd

// Merged bilinear taps of one axis of a RoI, computed once per block, in shared memory.
#pragma once

#include "../geometry.h"
#include "launch.cuh"

namespace maskrcnn {

constexpr int kMostTaps = 512;              // of an axis at a time
constexpr int kMostBins = kThreads;         // of an axis at a time
static_assert(kMostTaps >= 2 * kMostBins);  // a sampling point has two

template <typename T>
struct alignas(2 * sizeof(T)) Tap {
    T weight;
    int place;  // the pixel, times the step of the axis
};

// The pixels that each bin of a window reads, each once, with the sum of its weights over the bin's sampling points. A
// window is a number of neighbouring bins, and as many sampling points of each of them as have room: nearly always it
// holds all. Otherwise a RoI is processed one window after another, as its value is a sum over them.
template <typename T>
struct AxisTaps {
    Tap<T> taps[kMostTaps];  // those of bin b of the window start at b * stride
    int count[kMostBins];
    RoIAxis<T> axis;
    int size, step;               // of the map, and the distance between two pixels' places
    int first_bin, bins, window;  // bins of the window, and its number among those of these bins
    int stride;
    int more;  // whether there are further windows of these bins

    __device__ const Tap<T>* of_bin(int bin) const { return taps + bin * stride; }
    __device__ bool holds(int first, int number) const { return first_bin == first && window == number; }

    // One thread calls; a barrier, and all call fill(), each with another number; a barrier.
    __device__ void begin(int first, int number_of_bins, int number) {
        first_bin = first;
        bins = number_of_bins;
        stride = kMostTaps / bins;
        window = number;
        more = 0;
    }

    __device__ void fill(int bin) {
        if (bin >= bins) return;
        int first, last;
        axis.points_on_map(first_bin + bin, size, &first, &last);
        const int points = stride / 2, begin = first + window * points, end = min(begin + points, last);
        Tap<T>* mine = taps + bin * stride;
        int have = 0;
        for (int point = begin; point < end; ++point) {
            const BilinearTap<T> tap(axis.position(first_bin + bin, point), size);
            have = add(mine, have, tap.weight_low, tap.low * step);
            have = add(mine, have, tap.weight_high, tap.high * step);
        }
        for (int i = 0; i < have; ++i) mine[i].weight /= T(axis.grid);
        count[bin] = have;
        if (end < last) atomicMax(&more, 1);
    }

  private:
    // A pixel that occurred before is one of the last three, also where positions decrease, as those of an inverted
    // box.
    static __device__ int add(Tap<T>* mine, int have, T weight, int place) {
        if (weight == T(0)) return have;
        for (int i = have - 1; i >= max(0, have - 3); --i) {
            if (mine[i].place != place) continue;
            mine[i].weight += weight;
            return have;
        }
        mine[have] = {weight, place};
        return have + 1;
    }
};

// For each pixel of a window, the bins that read it: neighbours, as positions are monotonic.
struct PixelLinks {
    int16_t next[kMostTaps];    // the tap of the same pixel in the next bin, or -1
    int16_t firsts[kMostTaps];  // each pixel's first tap
    int pixels;                 // must be 0 before

    // Every thread of the block must call.
    template <typename T>
    __device__ void connect(const AxisTaps<T>& axis) {
        const int stride = axis.stride;
        for (int tap = threadIdx.x; tap < axis.bins * stride; tap += blockDim.x) {
            const int bin = tap / stride;
            if (tap - bin * stride >= axis.count[bin]) continue;
            const int place = axis.taps[tap].place;
            next[tap] = bin + 1 < axis.bins ? find(axis, bin + 1, stride, place) : int16_t(-1);
            if (bin > 0 && find(axis, bin - 1, stride, place) >= 0) continue;
            firsts[atomicAdd(&pixels, 1)] = static_cast<int16_t>(tap);
        }
    }

  private:
    template <typename T>
    static __device__ int16_t find(const AxisTaps<T>& axis, int bin, int stride, int place) {
        for (int tap = bin * stride; tap < bin * stride + axis.count[bin]; ++tap) {
            if (axis.taps[tap].place == place) return static_cast<int16_t>(tap);
        }
        return -1;
    }
};

}  // namespace maskrcnn

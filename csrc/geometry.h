// Arithmetic shared by the CPU and the CUDA kernels, so that tests of one also cover the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define MASKRCNN_HD __host__ __device__ __forceinline__
#else
#define MASKRCNN_HD inline
#endif

namespace maskrcnn {

// A box in pixels: x from x1 to x2, y from y1 to y2.
template <typename T>
struct Box {
    T x1, y1, x2, y2;

    MASKRCNN_HD T area() const { return (x2 - x1) * (y2 - y1); }
};

// Intersection over union, in the order of operations of torchvision.ops.nms: the last bit decides on which side of the
// threshold a pair falls. (The build forbids fused multiply-adds in the files that need this.)
template <typename T>
MASKRCNN_HD T box_iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
    const T left = a.x1 > b.x1 ? a.x1 : b.x1;
    const T top = a.y1 > b.y1 ? a.y1 : b.y1;
    const T right = a.x2 < b.x2 ? a.x2 : b.x2;
    const T bottom = a.y2 < b.y2 ? a.y2 : b.y2;
    const T width = right - left > T(0) ? right - left : T(0);
    const T height = bottom - top > T(0) ? bottom - top : T(0);
    const T intersection = width * height;
    return intersection / (area_a + area_b - intersection);
}

// Results of match_boxes for anchors without a target.
constexpr int64_t kBelowLow = -1, kBetween = -2;

// The largest T not above the threshold of NMS: as torchvision's CPU code does, an IoU in T is compared with the
// threshold in double.
template <typename T>
T round_down(double threshold) {
    const T nearest = static_cast<T>(threshold);
    return nearest > threshold ? std::nextafter(nearest, -std::numeric_limits<T>::infinity()) : nearest;
}

// The bins that a RoI is divided into, and the sampling points of each per axis; 0: about one per pixel.
struct BinGrid {
    int height, width, sampling_ratio;
    bool aligned;
};

// One axis of a RoI: RoIAlign's sampling points are a grid, and bilinear weights are products of one weight per axis.
template <typename T>
struct RoIAxis {
    T start;   // of the RoI, in units of the feature map
    T bin;     // side of a bin
    int grid;  // sampling points in a bin

    RoIAxis() = default;
    MASKRCNN_HD RoIAxis(T low, T high, T scale, int bins, int sampling_ratio, bool aligned) {
        // aligned: coordinates minus 0.5 are pixel indices, since the centre of pixel i is at i + 0.5
        const T offset = aligned ? T(0.5) : T(0);
        start = low * scale - offset;
        T length = (high * scale - offset) - start;
        if (!aligned && length < T(1)) length = T(1);
        bin = length / T(bins);
        const T points = sampling_ratio > 0 ? T(sampling_ratio) : std::ceil(length / T(bins));
        grid = points >= T(kMostPoints) ? kMostPoints : points > T(0) ? static_cast<int>(points) : 0;
    }

    // Position of sampling point `point` of bin `index`.
    MASKRCNN_HD T position(int index, int point) const {
        return start + T(index) * bin + (T(point) + T(0.5)) * bin / T(grid);
    }

    // First and one past the last point of bin `index` that may be inside a map of `size` pixels, so that a huge RoI
    // takes no more time than the map. Other points have weight 0.
    MASKRCNN_HD void points_on_map(int index, int size, int* first, int* last) const {
        *first = 0;
        *last = grid;
        if (grid <= 2 * size || !(bin > T(0))) return;  // first of all: GPUs have few units for doubles
        const double step = static_cast<double>(bin) / grid;
        const double base = static_cast<double>(start) + static_cast<double>(index) * bin;
        const double rounding = 1e-6 * (std::fabs(base) + std::fabs(static_cast<double>(bin)) + 1);
        if (!(rounding < 1e300)) {  // not finite: no point is inside the map
            *last = 0;
            return;
        }
        const double low = (-1 - rounding - base) / step - 1, high = (size + rounding - base) / step + 1;
        if (low > 0) *first = low < grid ? static_cast<int>(low) : grid;
        if (high < grid) *last = high > *first ? static_cast<int>(high) : *first;
    }

    static constexpr int kMostPoints = 1000000000;
};

// The two pixels on both sides of a position on one axis, and their weights, which are 0 outside the map.
template <typename T>
struct BilinearTap {
    int low = 0, high = 0;
    T weight_low = T(0), weight_high = T(0);

    MASKRCNN_HD BilinearTap(T position, int size) {
        if (!(position >= T(-1) && position <= T(size))) return;  // also for NaN
        if (position < T(0)) position = T(0);
        low = static_cast<int>(position);
        if (low >= size - 1) {
            low = high = size - 1;
            weight_low = T(1);
            return;
        }
        high = low + 1;
        weight_high = position - T(low);
        weight_low = T(1) - weight_high;
    }
};

}  // namespace maskrcnn

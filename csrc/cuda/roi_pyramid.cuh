// RoIAlign over the levels of a pyramid, channels last: what the forward and the backward pass have in common.
//
// A block works on one RoI, whose sampling points are a grid: the weights of the pixels are computed once per axis
// (roi_taps.cuh) and applied one axis after the other. The threads of a warp have neighbouring channels, 16 bytes each.
//
// 16-bit maps are read and written as such, but sums and coordinates are float32: Pixel is the element type of a map, T
// the type of the arithmetic.
#pragma once

#include <algorithm>
#include <vector>

#include "../geometry.h"
#include "channel_vector.cuh"
#include "launch.cuh"
#include "roi_taps.cuh"

namespace maskrcnn {

constexpr int kMostLevels = 8;

// The maps [B, height, width, C] of the pyramid, as a kernel's argument.
template <typename Pixel, typename T>
struct Pyramid {
    Pixel* data[kMostLevels];
    int height[kMostLevels], width[kMostLevels];
    T scale[kMostLevels];
    int64_t levels, batch;
    int channels;
};

constexpr int kTile = kWarp;  // bins of an axis at a time, where a thread does not have its own

// One RoI on its map. `valid` is false where the image or the level is out of range: the host cannot check without
// synchronizing.
template <typename T>
struct RoI {
    bool valid;
    int level;
    int64_t image;
    const T* box;

    template <typename Pixel>
    __device__ RoI(const T* roi, int64_t of_level, const Pyramid<Pixel, T>& pyramid)
        : valid(of_level >= 0 && of_level < pyramid.levels && roi[0] >= T(0) && roi[0] < T(pyramid.batch)),
          level(valid ? static_cast<int>(of_level) : 0),
          image(valid ? static_cast<int64_t>(roi[0]) : 0),
          box(roi) {}

    __device__ RoIAxis<T> rows(T scale, const BinGrid& bins) const {
        return {box[2], box[4], scale, bins.height, bins.sampling_ratio, bins.aligned};
    }
    __device__ RoIAxis<T> columns(T scale, const BinGrid& bins) const {
        return {box[1], box[3], scale, bins.width, bins.sampling_ratio, bins.aligned};
    }
};

// Two lines of channels, of the last even and the last odd row of pixels: positions are monotonic, so a row is not
// needed again after the next but one. (Registers have no index, hence two names.)
template <typename Line>
struct LastLines {
    static constexpr int kNone = -1;
    Line even, odd;
    int even_row = kNone, odd_row = kNone;

    __device__ void forget() { even_row = odd_row = kNone; }

    // Calls run(line, row), the row that the line holds.
    template <typename Run>
    __device__ void with(int row, const Run& run) {
        if (row & 1) {
            run(odd, odd_row);
        } else {
            run(even, even_row);
        }
    }
};

// Pixel is const if the maps are only read.
template <typename Pixel, typename T>
Pyramid<Pixel, T> make_pyramid(const std::vector<Tensor>& maps, const std::vector<double>& scales) {
    Pyramid<Pixel, T> pyramid = {};
    pyramid.levels = static_cast<int64_t>(maps.size());
    pyramid.batch = maps[0].size(0);
    pyramid.channels = static_cast<int>(maps[0].size(3));
    for (size_t l = 0; l < maps.size(); ++l) {
        pyramid.data[l] = static_cast<Pixel*>(const_cast<void*>(maps[l].const_data_ptr()));
        pyramid.height[l] = static_cast<int>(maps[l].size(1));
        pyramid.width[l] = static_cast<int>(maps[l].size(2));
        pyramid.scale[l] = static_cast<T>(scales[l]);
    }
    return pyramid;
}

// Places in a row of pixels are 32-bit numbers of bytes.
inline void check_row_of_pixels(int64_t width, int64_t channels) {
    constexpr int64_t kMostNumbers = int64_t(1) << 28;
    STD_TORCH_CHECK(width * channels < kMostNumbers, "features: rows of ", width, " pixels of ", channels,
                    " channels; expected less than ", kMostNumbers, " numbers a row");
}

// Whether these tensors' channels can be loaded and stored as groups of kCount.
template <typename Pixel, int kCount>
bool fit(const std::vector<Tensor>& tensors) {
    return std::all_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
        const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
        return tensor.size(3) % kCount == 0 && address % alignof(ChannelVector<Pixel, kCount>) == 0;
    });
}

// Blocks for each RoI whose threads have one item each, evenly full.
struct Shape {
    dim3 grid, block;

    Shape(int64_t rois, int64_t items) {
        constexpr int64_t kMostParts = 65535;
        const int64_t parts = (items + kThreads - 1) / kThreads, threads = (items + parts - 1) / parts;
        STD_TORCH_CHECK(parts <= kMostParts, "output_size: ", items, " vectors of channels a row of bins; expected ",
                        kMostParts * kThreads, " or less");
        grid = dim3(static_cast<unsigned>(rois), static_cast<unsigned>(parts));
        block = dim3(static_cast<unsigned>((threads + kWarp - 1) / kWarp * kWarp));
    }
};

}  // namespace maskrcnn

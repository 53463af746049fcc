// Passes over channels-last maps for sums by channel and image, and over the same maps again with what follows from
// them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "channels.h"

namespace maskrcnn {
namespace MASKRCNN_SET {

typedef double WideFloats __attribute__((vector_size(64)));
MASKRCNN_INLINE WideFloats widen(Simd<float>::Vec values) { return __builtin_convertvector(values, WideFloats); }
MASKRCNN_INLINE Simd<double>::Vec widen(Simd<double>::Vec values) { return values; }
MASKRCNN_INLINE double widen(float value) { return value; }
MASKRCNN_INLINE double widen(double value) { return value; }

// Maps [images, pixels, channels], and the parts of a map that sums are taken over.
struct MapShape {
    int64_t images, pixels, channels, groups, part, parts;

    MapShape(const torch::stable::Tensor& maps, int64_t groups_)
        : images(maps.size(0)), pixels(maps.size(1) * maps.size(2)), channels(maps.size(3)), groups(groups_) {
        constexpr int64_t kPart = 1 << 15;  // elements
        part = std::max<int64_t>(1, kPart / channels);
        parts = (pixels + part - 1) / part;
    }
    int64_t size() const { return pixels * channels; }
    int64_t in_group() const { return channels / groups; }
    int64_t group_size() const { return std::max<int64_t>(1, pixels * in_group()); }
};

// Calls run(block, c, first, last) for blocks of channels, from c on, and for pixels first..last-1, so few that the L1
// cache holds them: a block keeps its sums and coefficients in registers from pixel to pixel.
template <typename T, typename Run>
MASKRCNN_INLINE void for_blocks_of_pixels(const MapShape& shape, int64_t begin, int64_t end, const Run& run) {
    constexpr int kVecs = 2;  // two sums of each, as wide as double is, fill half of 16 registers
    const int64_t step = std::max<int64_t>(4, (1 << 12) / shape.channels);
    for (int64_t first = begin; first < end; first += step) {
        const int64_t last = std::min(end, first + step);
        for_blocks<T, kVecs>(shape.channels,
                             [&](auto block, int64_t c) MASKRCNN_INLINE_LAMBDA { run(block, c, first, last); });
    }
}

// sums [2][channels] over the pixels begin..end-1 of what add(block, index, c, one, two) adds to `one` and `two` for
// the channels from c on of a pixel, which are at `index`.
template <typename T, typename Add>
MASKRCNN_INLINE void sum_pixels(const MapShape& shape, int64_t begin, int64_t end, double* sums, const Add& add) {
    const int64_t channels = shape.channels;
    std::fill_n(sums, 2 * channels, 0.0);
    for_blocks_of_pixels<T>(shape, begin, end,
                            [&](auto block, int64_t c, int64_t first, int64_t last) MASKRCNN_INLINE_LAMBDA {
                                using Block = decltype(block);
                                decltype(widen(typename Block::Vec())) one[Block::kVecs], two[Block::kVecs];
                                __builtin_memcpy(one, sums + c, sizeof(one));
                                __builtin_memcpy(two, sums + channels + c, sizeof(two));
                                for (int64_t pixel = first; pixel < last; ++pixel) {
#pragma GCC unroll 2
                                    for (int i = 0; i < Block::kVecs; ++i) {
                                        const int64_t from = c + i * Block::kLanes;
                                        add(block, pixel * channels + from, from, one[i], two[i]);
                                    }
                                }
                                __builtin_memcpy(sums + c, one, sizeof(one));
                                __builtin_memcpy(sums + channels + c, two, sizeof(two));
                            });
}

// Both passes over all images: sum(image, begin, end, sums) gives the sums [2][channels] of the pixels begin..end-1,
// finish(image, sums) takes those of the whole image, and apply(image, begin, end) writes. A small map is still in the
// cache when it is read for the second time.
template <typename Sum, typename Finish, typename Apply>
void two_passes(const MapShape& shape, int64_t element_size, const Sum& sum, const Finish& finish, const Apply& apply) {
    constexpr int64_t kCached = 1 << 20;  // bytes
    const int64_t width = 2 * shape.channels, parts = shape.parts;
    const auto end_of = [&](int64_t part) { return std::min(shape.pixels, (part + 1) * shape.part); };
    const auto add = [&](const double* from, double* to) {
        for (int64_t i = 0; i < width; ++i) to[i] += from[i];
    };
    if (shape.images >= 2 * torch::stable::get_num_threads() && shape.size() * element_size <= kCached) {
        torch::stable::parallel_for(0, shape.images, 1, [&](int64_t begin, int64_t end) {
            std::vector<double> whole(width), one(width);
            for (int64_t image = begin; image < end; ++image) {
                std::fill(whole.begin(), whole.end(), 0.0);
                for (int64_t part = 0; part < parts; ++part) {
                    sum(image, part * shape.part, end_of(part), one.data());
                    add(one.data(), whole.data());
                }
                finish(image, whole.data());
                apply(image, 0, shape.pixels);
            }
        });
        return;
    }
    std::vector<double> sums(shape.images * parts * width), whole(width);
    torch::stable::parallel_for(0, shape.images * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            sum(i / parts, i % parts * shape.part, end_of(i % parts), sums.data() + i * width);
        }
    });
    for (int64_t image = 0; image < shape.images; ++image) {
        std::fill(whole.begin(), whole.end(), 0.0);
        for (int64_t part = 0; part < parts; ++part) add(sums.data() + (image * parts + part) * width, whole.data());
        finish(image, whole.data());
    }
    torch::stable::parallel_for(0, shape.images * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) apply(i / parts, i % parts * shape.part, end_of(i % parts));
    });
}

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

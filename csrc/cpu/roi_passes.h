// RoIAlign of one RoI, channels last, in two passes: bilinear weights are products of one weight per axis, so each row
// of pixels is first interpolated to the bins along x, and the results along y. The backward pass is in reverse order.
//
// The backward pass sums a block of channels for a whole tile, small enough for a RoI's pixels to stay in the L1 cache;
// the forward pass reads all channels of a pixel in memory order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "axis_taps.h"
#include "channels.h"

namespace maskrcnn {
namespace MASKRCNN_SET {

// Some pixels and a block of their channels: of a whole map, or of a tile that holds this block alone.
template <typename T>
struct Pixels {
    T* data;                 // the block's first channel at (y1, x1)
    int y1, x1, y2, x2;      // the pixels that are there
    int64_t row_step, step;  // from a pixel to the one below it and to the next

    T* at(int y, int x) const { return data + (y - y1) * row_step + (x - x1) * step; }
    bool has_row(int y) const { return y >= y1 && y < y2; }
    bool has_column(int x) const { return x >= x1 && x < x2; }
};

// sums += weight * values, the sums in registers, or else the values
template <typename Lanes, int kVecs, typename From>
MASKRCNN_INLINE void accumulate(typename Lanes::Vec* sums, typename Lanes::Sum weight, const From* values) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sums[i] += weight * Lanes::load(values + i * Lanes::kLanes);
}
template <typename Lanes, int kVecs, typename To>
MASKRCNN_INLINE void add_to(To* sums, typename Lanes::Sum weight, const typename Lanes::Vec* values) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
        To* to = sums + i * Lanes::kLanes;
        Lanes::store(to, Lanes::load(to) + weight * values[i]);
    }
}
// Prefetches the cache lines of `count` numbers.
template <int kCount, typename T>
MASKRCNN_INLINE void fetch(const T* from) {
    constexpr int kLine = 64 / sizeof(T);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; i += kLine) __builtin_prefetch(from + i);
}

// The RoI's bins, with all channels of `map`. `lines` has room for rows.most() lines of columns.bins() pixels.
template <typename T, typename Sum>
void forward_roi(const Pixels<const T>& map, int64_t channels, const AxisTaps<Sum>& rows, const AxisTaps<Sum>& columns,
                 T* out, Sum* lines) {
    const int bins = columns.bins();
    const int *row_slot = rows.slot.data(), *column_slot = columns.slot.data();
    const int *row_pixel = rows.pixel.data(), *column_pixel = columns.pixel.data();
    const Sum *row_weight = rows.weight.data(), *column_weight = columns.weight.data();
    const int kept = rows.most();
    int ready = 0;
    for (int y = 0; y < rows.bins(); ++y) {
        const int first = rows.start[y], last = rows.start[y + 1];
        for (int r = first; r < last; ++r) {
            for (; ready <= row_slot[r]; ++ready) {
                const T* row = map.at(row_pixel[ready], map.x1);
                for (int x = 0; x < bins; ++x) {
                    const int first_column = columns.start[x], last_column = columns.start[x + 1];
                    Sum* to = lines + (static_cast<int64_t>(ready % kept) * bins + x) * channels;
                    for_blocks<T>(channels, [&](auto block, int64_t c) MASKRCNN_INLINE_LAMBDA {
                        using Block = decltype(block);
                        typename Block::Vec sums[Block::kVecs] = {};
                        for (int i = first_column; i < last_column; ++i) {
                            accumulate<typename Block::Lanes, Block::kVecs>(
                                sums, column_weight[i], row + column_pixel[column_slot[i]] * map.step + c);
                        }
                        store_all<typename Block::SumLanes, Block::kVecs>(to + c, sums);
                    });
                }
            }
        }
        for (int x = 0; x < bins; ++x, out += channels) {
            for_blocks<T>(channels, [&](auto block, int64_t c) MASKRCNN_INLINE_LAMBDA {
                using Block = decltype(block);
                typename Block::Vec sums[Block::kVecs] = {};
                for (int r = first; r < last; ++r) {
                    accumulate<typename Block::SumLanes, Block::kVecs>(
                        sums, row_weight[r],
                        lines + (static_cast<int64_t>(row_slot[r] % kept) * bins + x) * channels + c);
                }
                store_all<typename Block::Lanes, Block::kVecs>(out + c, sums);
            });
        }
    }
}

// Adds the RoI's part to the sums of a block, where they are. `grad` is the block's first channel in the RoI's first
// bin, and bins are `step` numbers apart. `line` has room for columns.pixels() blocks.
template <typename Block, typename T = typename Block::T, typename Sum = typename Block::Sum>
void backward_roi(const Pixels<Sum>& sums, const AxisTaps<Sum>& rows, const AxisTaps<Sum>& columns, const T* grad,
                  int64_t step, Sum* line) {
    using Lanes = typename Block::Lanes;
    using SumLanes = typename Block::SumLanes;
    constexpr int kVecs = Block::kVecs;
    typename Block::Vec values[kVecs];
    for (int y = 0; y < rows.bins(); ++y) {
        bool line_is_ready = false;
        for (int r = rows.start[y]; r < rows.start[y + 1]; ++r) {
            const int row = rows.pixel[rows.slot[r]];
            if (!sums.has_row(row)) continue;
            if (!line_is_ready) {
                line_is_ready = true;
                std::fill_n(line, static_cast<int64_t>(columns.pixels()) * Block::kWidth, Sum(0));
                for (int x = 0; x < columns.bins(); ++x) {
                    const T* bin = grad + (static_cast<int64_t>(y) * columns.bins() + x) * step;
                    fetch<Block::kWidth>(bin + columns.bins() * step);
                    load_all<Lanes, kVecs>(values, bin);
                    for (int c = columns.start[x]; c < columns.start[x + 1]; ++c) {
                        add_to<SumLanes, kVecs>(line + columns.slot[c] * Block::kWidth, columns.weight[c], values);
                    }
                }
            }
            for (int c = 0; c < columns.pixels(); ++c) {
                if (!sums.has_column(columns.pixel[c])) continue;
                load_all<SumLanes, kVecs>(values, line + c * Block::kWidth);
                add_to<SumLanes, kVecs>(sums.at(row, columns.pixel[c]), rows.weight[r], values);
            }
        }
    }
}

// The sums of a block, rounded into the map.
template <typename Block, typename T = typename Block::T, typename Sum = typename Block::Sum>
void round_into(const Pixels<Sum>& sums, const Pixels<T>& map) {
    typename Block::Vec values[Block::kVecs];
    for (int y = sums.y1; y < sums.y2; ++y) {
        for (int x = sums.x1; x < sums.x2; ++x) {
            load_all<typename Block::SumLanes, Block::kVecs>(values, sums.at(y, x));
            store_all<typename Block::Lanes, Block::kVecs>(map.at(y, x), values);
        }
    }
}

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

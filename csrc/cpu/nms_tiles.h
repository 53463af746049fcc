// A division of the plane into tiles, so that threads can suppress boxes in all tiles at the same time, and so that the
// boxes that are compared with one another are in the cache.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../geometry.h"
#include "instruction_set.h"
#include "shelves.h"

namespace maskrcnn {
namespace MASKRCNN_SET {

// Boxes that one thread handles at a time, where each is handled for itself. Where there are fewer, one thread takes 3
// ms for everything, and if other programs use the processor, it can take longer until a second one gets its turn.
constexpr int64_t kChunk = 32768;

// Columns, cut at quantiles of x1, and each cut into tiles at quantiles of y1, so that all have about as many boxes. A
// box is in the tile of its upper left corner.
//
// Two boxes in different tiles can have an IoU above the threshold only if both are border boxes: is_border() bounds
// the corners of a box's possible partners by its own sides.
template <typename T>
class Tiles {
  public:
    // Few enough tiles that few boxes are border boxes, in a sample; none if that needs a single one. No proper box is
    // wider or higher than `widest` and `highest`.
    Tiles(const Box<T>* boxes, int64_t count, T threshold, T widest, T highest)
        : bounds_(threshold), widest_(widest), highest_(highest) {
        const int64_t most = wanted(count);
        if (most < 2) return;
        std::vector<Box<T>> sample;
        for (int64_t i = 0; i < count; i += count / std::max(kLeastSample, most * kSampleOfTile)) {
            if (is_proper(boxes[i])) sample.push_back(boxes[i]);
        }
        std::sort(sample.begin(), sample.end(), [](const Box<T>& a, const Box<T>& b) { return a.x1 < b.x1; });
        for (int64_t tiles = most; tiles > 1; tiles /= 2) {
            cut(sample, static_cast<int>(tiles));
            const auto border = std::count_if(sample.begin(), sample.end(),
                                              [&](const Box<T>& box) { return is_border(box, tile_of(box)); });
            if (border <= static_cast<int64_t>(sample.size() / kOneBorderBoxIn)) return;
        }
        column_count_ = row_count_ = 0;
    }

    int count() const { return column_count_ * row_count_; }

    int tile_of(const Box<T>& box) const {
        const int column = part_of(columns_.data(), column_count_, box.x1);
        return column * row_count_ + part_of(rows_of(column), row_count_, box.y1);
    }

    bool is_border(const Box<T>& box, int tile) const {
        const int column = tile / row_count_, row = tile % row_count_;
        return leaves(columns_.data(), column_count_, column, box.x1, box.x2, widest_) ||
               leaves(rows_of(column), row_count_, row, box.y1, box.y2, highest_);
    }

  private:
    static constexpr int64_t kLeastSample = 256, kSampleOfTile = 32, kOneBorderBoxIn = 4;

    // With one thread, tiles pay where the index of all boxes is larger than the cache.
    static int64_t wanted(int64_t count) {
        constexpr int64_t kLeast = 4096, kBest = 16384, kMost = 1024, kCached = 200000;
        const int64_t threads = torch::stable::get_num_threads(), best = std::min(count / kBest, kMost);
        if (count <= (threads == 1 ? kCached : kChunk)) return 0;
        return threads == 1 ? best : std::max(best, std::min(count / kLeast, 2 * threads));
    }

    void cut(const std::vector<Box<T>>& sample, int tiles) {
        column_count_ = static_cast<int>(std::sqrt(static_cast<double>(tiles)));
        row_count_ = tiles / column_count_;
        columns_.clear(), rows_.clear();
        const size_t size = sample.size();
        for (int c = 1; c < column_count_; ++c) columns_.push_back(sample[size * c / column_count_].x1);
        std::vector<T> y;
        for (int c = 0; c < column_count_; ++c) {
            y.clear();
            for (size_t i = size * c / column_count_; i < size * (c + 1) / column_count_; ++i) {
                y.push_back(sample[i].y1);
            }
            std::sort(y.begin(), y.end());
            for (int r = 1; r < row_count_; ++r) rows_.push_back(y[y.size() * r / row_count_]);
        }
    }

    const T* rows_of(int column) const { return rows_.data() + column * (row_count_ - 1); }

    // Part p of an axis holds positions from cuts[p - 1] to below cuts[p].
    static int part_of(const T* cuts, int parts, T position) {
        return static_cast<int>(std::upper_bound(cuts, cuts + parts - 1, position) - cuts);
    }

    // Whether a partner of a box with sides low .. high may begin in another part.
    bool leaves(const T* cuts, int parts, int part, T low, T high, T longest) const {
        const auto [first, last] = bounds_.partners(low, high, std::min(longest, (high - low) * bounds_.grow));
        return (part > 0 && first < cuts[part - 1]) || (part < parts - 1 && last >= cuts[part]);
    }

    PartnerBounds<T> bounds_;
    T widest_, highest_;
    int column_count_ = 0, row_count_ = 0;
    std::vector<T> columns_, rows_;  // cuts; those of the rows of each column after those of the column before
};

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

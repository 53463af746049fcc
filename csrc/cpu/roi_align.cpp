// RoIAlign over the levels of a pyramid, forward and backward, channels last.
//
// The sampling points of a bin are a grid: its value is a sum over a few rows times a few columns of pixels, whose
// weights are computed once per RoI (axis_taps.h) and applied one axis after the other (roi_passes.h).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "axis_taps.h"
#include "huge_pages.h"
// from here on for one instruction set
#include "begin_set.h"
#include "roi_passes.h"

namespace maskrcnn {
namespace MASKRCNN_SET {
namespace {

// One level of the pyramid, [B, height, width, C].
template <typename T, typename Sum>
struct Level {
    T* data;
    int height, width;
    Sum scale;

    // The channels from `first` on of image `image`.
    Pixels<T> pixels(int64_t image, int64_t channels, int64_t first) const {
        const int64_t row_step = width * channels;
        return {data + image * height * row_step + first, 0, 0, height, width, row_step, channels};
    }
};

int64_t count_bins(const BinGrid& bins) { return static_cast<int64_t>(bins.height) * bins.width; }

// The rows and columns of a map that a RoI reads.
template <typename Sum>
struct RoITaps {
    AxisTaps<Sum> rows, columns;

    template <typename T>
    void compute(const Sum* roi, const Level<T, Sum>& level, const BinGrid& bins) {
        const int ratio = bins.sampling_ratio;
        rows.compute(roi[2], roi[4], level.scale, bins.height, ratio, bins.aligned, level.height);
        columns.compute(roi[1], roi[3], level.scale, bins.width, ratio, bins.aligned, level.width);
    }
};

// Checks that RoIs are finite, and that their images and levels exist.
template <typename Sum>
void check_roi_values(const Tensor& rois, const Tensor& level, int64_t levels, int64_t batch) {
    const auto* l = static_cast<const int64_t*>(level.const_data_ptr());
    const auto* roi = static_cast<const Sum*>(rois.const_data_ptr());
    for (int64_t k = 0; k < rois.size(0); ++k, roi += 5) {
        for (int i = 0; i < 5; ++i) {
            STD_TORCH_CHECK(std::isfinite(roi[i]), "rois: roi ", k, " has a coordinate that is not finite");
        }
        STD_TORCH_CHECK(roi[0] >= 0 && roi[0] < static_cast<Sum>(batch), "rois: roi ", k, " is of image ", roi[0],
                        ", the batch has ", batch);
        STD_TORCH_CHECK(l[k] >= 0 && l[k] < levels, "level: ", l[k], " of roi ", k, " is not a level");
    }
}

// The order in which to process the RoIs: neighbours consecutively, so that shared pixels are in the cache.
template <typename Sum>
std::vector<int64_t> by_place(const Sum* rois, const int64_t* level_of, int64_t count) {
    struct Key {
        int64_t level;
        Sum image, band, x;
        int64_t k;
    };
    constexpr Sum kBand = 64;  // pixels
    std::vector<Key> keys(count);
    for (int64_t k = 0; k < count; ++k) {
        const Sum* roi = rois + 5 * k;
        keys[k] = {level_of[k], roi[0], std::floor(roi[2] / kBand), roi[1], k};
    }
    std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
        return std::tie(a.level, a.image, a.band, a.x, a.k) < std::tie(b.level, b.image, b.band, b.x, b.k);
    });
    std::vector<int64_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = keys[i].k;
    return order;
}

// Calls run(i) for `count` jobs of unequal size; each free thread takes the next one.
template <typename Run>
void share_out(int64_t count, const Run& run) {
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
        for (int64_t i; (i = next.fetch_add(1)) < count;) run(i);
    });
}

template <typename T, typename Sum = typename Channels<T>::Sum>
void forward(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& level,
             const std::vector<double>& scales, const BinGrid& bins, Tensor& out) {
    check_roi_values<Sum>(rois, level, static_cast<int64_t>(features.size()), features[0].size(0));
    std::vector<Level<const T, Sum>> levels;
    for (size_t l = 0; l < features.size(); ++l) {
        levels.push_back({static_cast<const T*>(features[l].const_data_ptr()), static_cast<int>(features[l].size(1)),
                          static_cast<int>(features[l].size(2)), static_cast<Sum>(scales[l])});
    }
    const int64_t channels = features[0].size(3), roi_size = channels * count_bins(bins);
    const auto* roi = static_cast<const Sum*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    auto* result = static_cast<T*>(out.mutable_data_ptr());
    const auto order = by_place(roi, level_of, rois.size(0));
    torch::stable::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
        RoITaps<Sum> taps;
        std::vector<Sum> lines;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t k = order[i];
            const Level<const T, Sum>& map = levels[level_of[k]];
            taps.compute(roi + 5 * k, map, bins);
            lines.resize(static_cast<int64_t>(taps.rows.most()) * bins.width * channels);
            forward_roi(map.pixels(static_cast<int64_t>(roi[5 * k]), channels, 0), channels, taps.rows, taps.columns,
                        result + k * roi_size, lines.data());
        }
    });
}

// A tile of a map whose gradient is summed by one thread, and the RoIs that read it.
struct Tile {
    int level;
    int64_t image;
    int y1, x1, y2, x2;
    std::vector<int64_t> rois;
};

// Tiles whose sums fit in a core's cache.
template <typename T, typename Sum>
class Tiles {
  public:
    Tiles(const std::vector<Level<T, Sum>>& levels, int64_t batch) {
        constexpr int kPixels = (1 << 18) / WideBlock<T>::kWidth / sizeof(Sum);
        for (const auto& map : levels) {
            Grid grid{static_cast<int64_t>(tiles.size()), 0, 0, 0, 0};
            grid.width = std::min(map.width, kPixels / 4);
            grid.height = std::min(map.height, kPixels / grid.width);
            grid.columns = (map.width + grid.width - 1) / grid.width;
            grid.rows = (map.height + grid.height - 1) / grid.height;
            grids_.push_back(grid);
            for (int64_t image = 0; image < batch; ++image) {
                for (int y = 0; y < map.height; y += grid.height) {
                    for (int x = 0; x < map.width; x += grid.width) {
                        tiles.push_back({static_cast<int>(&map - levels.data()), image, y, x,
                                         std::min(y + grid.height, map.height), std::min(x + grid.width, map.width)});
                    }
                }
            }
        }
    }

    // Adds RoI k to every tile that it reads.
    void add(int64_t k, int64_t level, int64_t image, const RoITaps<Sum>& taps) {
        if (taps.rows.pixel.empty() || taps.columns.pixel.empty()) return;
        const Grid& grid = grids_[level];
        const auto [top, bottom] = std::minmax_element(taps.rows.pixel.begin(), taps.rows.pixel.end());
        const auto [left, right] = std::minmax_element(taps.columns.pixel.begin(), taps.columns.pixel.end());
        for (int y = *top / grid.height; y <= *bottom / grid.height; ++y) {
            for (int x = *left / grid.width; x <= *right / grid.width; ++x) {
                tiles[grid.first + (image * grid.rows + y) * grid.columns + x].rois.push_back(k);
            }
        }
    }

    std::vector<Tile> tiles;

  private:
    struct Grid {
        int64_t first;  // its first tile
        int height, width, rows, columns;
    };
    std::vector<Grid> grids_;
};

// Each tile is processed by one thread, which visits its RoIs in order, so that no two threads write to the same
// address and every sum has the same order for any number of threads.
template <typename T, typename Sum = typename Channels<T>::Sum>
void backward(const Tensor& grad, const Tensor& rois, const Tensor& level, const std::vector<double>& scales,
              const BinGrid& bins, std::vector<Tensor>& out) {
    const int64_t batch = out[0].size(0), count = rois.size(0), channels = grad.size(3);
    check_roi_values<Sum>(rois, level, static_cast<int64_t>(scales.size()), batch);
    std::vector<Level<T, Sum>> levels;
    for (size_t l = 0; l < out.size(); ++l) {
        levels.push_back({static_cast<T*>(out[l].mutable_data_ptr()), static_cast<int>(out[l].size(1)),
                          static_cast<int>(out[l].size(2)), static_cast<Sum>(scales[l])});
    }
    const auto* roi = static_cast<const Sum*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    const auto* gradient = static_cast<const T*>(grad.const_data_ptr());
    std::vector<RoITaps<Sum>> taps_of(count);
    torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) taps_of[k].compute(roi + 5 * k, levels[level_of[k]], bins);
    });
    Tiles<T, Sum> tiles(levels, batch);
    for (int64_t k = 0; k < count; ++k) tiles.add(k, level_of[k], static_cast<int64_t>(roi[5 * k]), taps_of[k]);
    share_out(static_cast<int64_t>(tiles.tiles.size()), [&](int64_t i) {
        const Tile& tile = tiles.tiles[i];
        std::vector<Sum> sums, line;
        for_blocks<T>(channels, [&](auto block, int64_t c) {
            using Block = decltype(block);
            const int64_t row_step = static_cast<int64_t>(tile.x2 - tile.x1) * Block::kWidth;
            sums.assign((tile.y2 - tile.y1) * row_step, Sum(0));
            const Pixels<Sum> own{sums.data(), tile.y1, tile.x1, tile.y2, tile.x2, row_step, Block::kWidth};
            for (const int64_t k : tile.rois) {
                line.resize(static_cast<int64_t>(taps_of[k].columns.pixels()) * Block::kWidth);
                backward_roi<Block>(own, taps_of[k].rows, taps_of[k].columns,
                                    gradient + k * count_bins(bins) * channels + c, channels, line.data());
            }
            round_into<Block>(own, levels[tile.level].pixels(tile.image, channels, c));
        });
    });
}

}  // namespace

Tensor roi_align(std::vector<Tensor> features, const Tensor& rois, const Tensor& level, std::vector<double> scales,
                 int64_t size_h, int64_t size_w, int64_t sampling_ratio, bool aligned) {
    check_roi_align(features, rois, level, scales.size(), size_h, size_w, sampling_ratio);
    const ScalarType type = features[0].scalar_type();
    Tensor out = torch::stable::empty({rois.size(0), size_h, size_w, features[0].size(3)}, type);
    use_huge_pages(out);
    const BinGrid bins{static_cast<int>(size_h), static_cast<int>(size_w), static_cast<int>(sampling_ratio), aligned};
    MASKRCNN_FOR_DTYPE(type, forward)(features, rois, level, scales, bins, out);
    return out;
}

std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level,
                                       std::vector<double> scales, int64_t batch, std::vector<int64_t> heights,
                                       std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned,
                                       bool /*deterministic: it always is*/) {
    check_roi_align_backward(grad, rois, level, scales.size(), heights, widths, sampling_ratio);
    std::vector<Tensor> out;
    for (size_t l = 0; l < scales.size(); ++l) {
        out.push_back(torch::stable::empty({batch, heights[l], widths[l], grad.size(3)}, grad.scalar_type()));
        use_huge_pages(out.back());
    }
    const BinGrid bins{static_cast<int>(grad.size(1)), static_cast<int>(grad.size(2)), static_cast<int>(sampling_ratio),
                       aligned};
    MASKRCNN_FOR_DTYPE(grad.scalar_type(), backward)(grad, rois, level, scales, bins, out);
    return out;
}

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

#include "end_set.h"

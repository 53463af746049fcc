// Non-maximum suppression, near-linear for boxes that are small compared to the image.
//
// Greedy NMS compares each box with the boxes kept so far; shelves.h indexes these, so that only those that may overlap
// it are compared. Many boxes are divided into tiles (nms_tiles.h), which all threads share.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "axis_cells.h"
#include "radix_sort.h"
// from here on for one instruction set
#include "begin_set.h"
#include "nms_tiles.h"
#include "shelves.h"

namespace maskrcnn {
namespace MASKRCNN_SET {
namespace {

constexpr int64_t kFew = 48;  // for so few boxes, comparing all is faster than an index

// Runs `run(chunk, begin, end)` for the chunks of `count` boxes, in parallel.
template <typename Run>
void for_chunks(int64_t count, const Run& run) {
    torch::stable::parallel_for(0, (count + kChunk - 1) / kChunk, 1, [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) run(c, c * kChunk, std::min((c + 1) * kChunk, count));
    });
}

template <typename T>
void suppress_few(const Box<T>* boxes, int64_t count, T threshold, bool* keep) {
    constexpr int kLanes = Simd<T>::kLanes;
    std::vector<Block<T>> kept((count + kLanes - 1) / kLanes);
    for (int64_t i = 0, n = 0; i < count; ++i) {
        keep[i] = !overlaps(kept.data(), (n + kLanes - 1) / kLanes, boxes[i], threshold);
        if (keep[i]) kept[n / kLanes].set(n % kLanes, boxes[i], false), ++n;
    }
}

// Suppresses boxes, of which those with is_border(box) may also overlap others than these. `Out` is State, or bool
// where there is no border.
template <typename T, typename Out, typename IsBorder>
void suppress_tile(const Box<T>* boxes, int64_t count, T threshold, const IsBorder& is_border, Out* states) {
    Shelves<T> shelves(boxes, count, threshold);
    for (int64_t i = 0; i < count; ++i) {
        State state = kKept;
        if (shelves.has(i)) {
            state = shelves.compare(boxes[i]);
            if (state == kKept && is_border(boxes[i])) state = kOpen;
            if (state != kSuppressed) shelves.add(i, boxes[i], state);
        }
        states[i] = static_cast<Out>(state);
    }
}

// The boxes of each tile, in their order.
template <typename T>
struct Tiled {
    std::vector<int64_t> starts;     // of the tiles, and the end
    std::vector<int32_t> positions;  // of each box in `boxes`
    std::unique_ptr<Box<T>[]> boxes;

    Tiled(const Tiles<T>& tiles, const Box<T>* all, int64_t count)
        : starts(tiles.count() + 1), positions(count), boxes(new Box<T>[count]) {
        const int64_t chunks = (count + kChunk - 1) / kChunk;
        std::vector<int32_t> next(chunks * tiles.count());  // where a chunk's next box of a tile goes
        for_chunks(count, [&](int64_t chunk, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                positions[i] = tiles.tile_of(all[i]);
                ++next[chunk * tiles.count() + positions[i]];
            }
        });
        int32_t total = 0;
        for (int tile = 0; tile < tiles.count(); ++tile) {
            starts[tile] = total;
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                total += std::exchange(next[chunk * tiles.count() + tile], total);
            }
        }
        starts.back() = total;
        for_chunks(count, [&](int64_t chunk, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                positions[i] = next[chunk * tiles.count() + positions[i]]++;
                boxes[positions[i]] = all[i];
            }
        });
    }
};

// Whether there are areas that are subnormal numbers, and the largest sides.
template <typename T>
struct Extremes {
    bool tiny = false;
    T widest = 0, highest = 0;

    static Extremes of(const Box<T>* boxes, int64_t count) {
        std::vector<Extremes> parts((count + kChunk - 1) / kChunk);
        for_chunks(count, [&](int64_t chunk, int64_t begin, int64_t end) {
            Extremes part;
            for (int64_t i = begin; i < end; ++i) {
                if (!is_proper(boxes[i])) continue;
                part.tiny |= boxes[i].area() < std::numeric_limits<T>::min();
                part.widest = std::max(part.widest, boxes[i].x2 - boxes[i].x1);
                part.highest = std::max(part.highest, boxes[i].y2 - boxes[i].y1);
            }
            parts[chunk] = part;
        });
        Extremes all;
        for (const Extremes& part : parts) {
            all.tiny |= part.tiny;
            all.widest = std::max(all.widest, part.widest), all.highest = std::max(all.highest, part.highest);
        }
        return all;
    }
};

// Suppresses boxes that overlap no others than these.
template <typename T>
void suppress_all(const Box<T>* boxes, int64_t count, T threshold, bool* keep) {
    suppress_tile(boxes, count, threshold, [](const Box<T>&) { return false; }, keep);
}

// Suppresses boxes of one group, highest score first.
//
// All tiles are settled at the same time. What is not known then, the border boxes and what depends on them, is settled
// among itself: a box that is kept for certain and comes before an open one does not overlap it, or it would have
// suppressed it, and none that comes after it matters.
template <typename T>
void suppress_group(const Box<T>* boxes, int64_t count, T threshold, bool* keep) {
    if (count <= kFew) return suppress_few(boxes, count, threshold, keep);
    const auto extremes = Extremes<T>::of(boxes, count);
    // With a threshold below 0, boxes that do not overlap suppress one another; and for areas that are subnormal
    // numbers the IoU is so inexact that sides give no bound for it.
    if (extremes.tiny || !(threshold >= 0)) return suppress_few(boxes, count, threshold, keep);
    const Tiles<T> tiles(boxes, count, threshold, extremes.widest, extremes.highest);
    if (tiles.count() == 0) return suppress_all(boxes, count, threshold, keep);
    const auto states = std::make_unique<State[]>(count);
    const Tiled<T> tiled(tiles, boxes, count);
    torch::stable::parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const auto is_border = [&](const Box<T>& box) { return tiles.is_border(box, static_cast<int>(t)); };
            const int64_t first = tiled.starts[t];
            suppress_tile(&tiled.boxes[first], tiled.starts[t + 1] - first, threshold, is_border, &states[first]);
        }
    });
    std::vector<std::vector<int32_t>> open_of_chunk((count + kChunk - 1) / kChunk);
    for_chunks(count, [&](int64_t chunk, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const State state = states[tiled.positions[i]];
            keep[i] = state == kKept;
            if (state == kOpen) open_of_chunk[chunk].push_back(static_cast<int32_t>(i));
        }
    });
    std::vector<int32_t> open;
    for (const auto& chunk : open_of_chunk) open.insert(open.end(), chunk.begin(), chunk.end());
    const auto open_count = static_cast<int64_t>(open.size());
    std::vector<Box<T>> open_boxes(open_count);
    for (int64_t i = 0; i < open_count; ++i) open_boxes[i] = boxes[open[i]];
    const auto open_keep = std::make_unique<bool[]>(open_count);
    const auto settle = open_count > count / 2 ? suppress_all<T> : suppress_group<T>;  // the sample may have misled
    settle(open_boxes.data(), open_count, threshold, open_keep.get());
    for (int64_t i = 0; i < open_count; ++i) keep[open[i]] = open_keep[i];
}

// Groups starts[g] .. starts[g + 1]: large ones one after another, each by all threads; the others, each by one thread.
template <typename T>
void suppress_groups(const Box<T>* boxes, const std::vector<int64_t>& starts, T threshold, bool* keep) {
    const auto run = [&](int64_t g) {
        suppress_group(boxes + starts[g], starts[g + 1] - starts[g], threshold, keep + starts[g]);
    };
    const auto groups = static_cast<int64_t>(starts.size()) - 1;
    const auto is_shared = [&](int64_t g) { return starts[g + 1] - starts[g] > std::max(kChunk, starts.back() / 4); };
    for (int64_t g = 0; g < groups; ++g) {
        if (is_shared(g)) run(g);
    }
    torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
            if (!is_shared(g)) run(g);
        }
    });
}

std::vector<int32_t> order_of(const Tensor& scores) {
    const int64_t count = scores.size(0);
    return scores.scalar_type() == ScalarType::Double
               ? order_descending(static_cast<const double*>(scores.const_data_ptr()), count)
               : order_descending(static_cast<const float*>(scores.const_data_ptr()), count);
}

// Sorts boxes by group, stable within a group; returns where the groups start, and the end.
std::vector<int64_t> gather_groups(const int64_t* group, std::vector<int32_t>& order) {
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return group[a] < group[b]; });
    std::vector<int64_t> starts{0};
    for (size_t i = 1; i < order.size(); ++i) {
        if (group[order[i]] != group[order[i - 1]]) starts.push_back(static_cast<int64_t>(i));
    }
    starts.push_back(static_cast<int64_t>(order.size()));
    return starts;
}

template <typename T>
std::tuple<Tensor, Tensor> suppress(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                                    double threshold) {
    const int64_t count = boxes.size(0);
    const auto* box = static_cast<const Box<T>*>(boxes.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
        const bool bad =
            std::isnan(box[i].x1) || std::isnan(box[i].y1) || std::isnan(box[i].x2) || std::isnan(box[i].y2);
        STD_TORCH_CHECK(!bad, "boxes: a coordinate of box ", i, " is NaN");
    }
    const std::vector<int32_t> by_score = order_of(scores);
    std::vector<int32_t> order = by_score;
    std::vector<int64_t> starts{0, count};
    if (idxs) starts = gather_groups(static_cast<const int64_t*>(idxs->const_data_ptr()), order);
    std::vector<Box<T>> sorted(count);
    for_chunks(count, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) sorted[i] = box[order[i]];
    });
    const auto keep = std::make_unique<bool[]>(count);
    const T limit = round_down<T>(threshold) + T(0);  // -0 is 0
    suppress_groups(sorted.data(), starts, limit, keep.get());
    std::vector<uint8_t> kept(count);
    for (int64_t i = 0; i < count; ++i) kept[order[i]] = keep[i];
    Tensor ranked = torch::stable::empty({count}, ScalarType::Long);
    Tensor is_kept = torch::stable::empty({count}, ScalarType::Bool);
    auto* index = static_cast<int64_t*>(ranked.mutable_data_ptr());
    auto* flag = static_cast<bool*>(is_kept.mutable_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
        index[i] = by_score[i];
        flag[i] = kept[by_score[i]] != 0;
    }
    return {ranked, is_kept};
}

}  // namespace

std::tuple<Tensor, Tensor> nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                               double threshold) {
    check_nms(boxes, scores, idxs);
    const auto run = boxes.scalar_type() == ScalarType::Double ? suppress<double> : suppress<float>;
    return run(boxes, scores, idxs, threshold);
}

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

#include "end_set.h"

// Non-maximum suppression, near-linear for boxes that are small compared to the image.
//
// Greedy NMS compares each box with the boxes kept so far; shelves.h indexes these, so that only those that may overlap
// it are compared.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "axis_cells.h"
#include "radix_sort.h"
// from here on for one instruction set
#include "begin_set.h"
#include "shelves.h"

namespace maskrcnn {
namespace MASKRCNN_SET {
namespace {

constexpr int64_t kFew = 48;  // for so few boxes, comparing all is faster than an index

template <typename T>
void suppress_group(const Box<T>* boxes, int64_t count, T threshold, bool* keep) {
    // With a threshold below 0, boxes that do not overlap suppress one another; and for areas that are subnormal
    // numbers the IoU is so inexact that sides give no bound for it.
    const bool tiny = std::any_of(
        boxes, boxes + count, [](const Box<T>& b) { return is_proper(b) && b.area() < std::numeric_limits<T>::min(); });
    if (count <= kFew || tiny || !(threshold >= 0)) {
        constexpr int kLanes = Simd<T>::kLanes;
        std::vector<Block<T>> kept((count + kLanes - 1) / kLanes);
        for (int64_t i = 0, n = 0; i < count; ++i) {
            keep[i] = !overlaps(kept.data(), (n + kLanes - 1) / kLanes, boxes[i], threshold);
            if (keep[i]) kept[n / kLanes].set(n % kLanes, boxes[i]), ++n;
        }
        return;
    }
    Shelves<T> shelves(boxes, count, threshold);
    for (int64_t i = 0; i < count; ++i) {
        keep[i] = !shelves.has(i) || !shelves.suppresses(boxes[i]);
        if (shelves.has(i) && keep[i]) shelves.add(i, boxes[i]);
    }
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
    for (int64_t i = 0; i < count; ++i) sorted[i] = box[order[i]];
    const auto keep = std::make_unique<bool[]>(count);
    const T limit = round_down<T>(threshold) + T(0);  // -0 is 0
    torch::stable::parallel_for(0, static_cast<int64_t>(starts.size()) - 1, 1, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
            suppress_group(&sorted[starts[g]], starts[g + 1] - starts[g], limit, &keep[starts[g]]);
        }
    });
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

// Matches anchors to targets without the matrix of all IoU.
//
// Two passes over overlapping pairs: the first finds the best target of each anchor and the highest IoU of each target;
// the second, which is optional, the anchors that have the highest IoU of a target. Other pairs have IoU 0 and are
// skipped: targets are indexed by their upper left corner, and only those near enough to an anchor are compared.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "axis_cells.h"

namespace maskrcnn {
namespace {

constexpr int64_t kGrain = 1024;

template <typename T>
bool is_finite(const Box<T>& b) {
    return std::isfinite(b.x1) && std::isfinite(b.y1) && std::isfinite(b.x2) && std::isfinite(b.y2);
}

// Targets sorted by grid cell, row by row, after the few that are much larger than most.
template <typename T>
class Targets {
  public:
    Targets(const Box<T>* boxes, int64_t count) : index(count), box(count), area(count) {
        std::vector<T> sides(count);
        for (int64_t i = 0; i < count; ++i) sides[i] = longer_side(boxes[i]);
        std::nth_element(sides.begin(), sides.begin() + count / 2, sides.end());
        large_side_ = 8 * sides[count / 2];
        constexpr T kInfinity = std::numeric_limits<T>::infinity();
        T x1 = kInfinity, y1 = kInfinity, x2 = -kInfinity, y2 = -kInfinity, reach = 0;
        for (int64_t i = 0; i < count; ++i) {
            const Box<T>& b = boxes[i];
            if (longer_side(b) > large_side_) continue;
            widest_ = std::max(widest_, b.x2 - b.x1);
            tallest_ = std::max(tallest_, b.y2 - b.y1);
            x1 = std::min(x1, b.x1), x2 = std::max(x2, b.x1);
            y1 = std::min(y1, b.y1), y2 = std::max(y2, b.y1);
            reach = std::max({reach, std::abs(b.x1), std::abs(b.y1), std::abs(b.x2), std::abs(b.y2)});
        }
        // margin for the rounding of widest_ and tallest_; subtracting them from an anchor only rounds down
        const T margin = reach * std::numeric_limits<T>::epsilon() * 8;
        widest_ += margin;
        tallest_ += margin;
        const T most = std::ceil(std::sqrt(static_cast<T>(count)));
        columns_ = AxisCells<T>(x1, x2, widest_ / 2, most);
        rows_ = AxisCells<T>(y1, y2, tallest_ / 2, most);
        file(boxes, count);
    }

    // Calls visit(position, IoU) for every target that overlaps the anchor.
    template <typename Visit>
    void visit_touching(const Box<T>& anchor, const Visit& visit) const {
        const T area_of_anchor = anchor.area();
        const auto look_at = [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const Box<T>& b = box[i];
                // no branch per side, since it would be unpredictable
                if ((b.x1 < anchor.x2) & (b.x2 > anchor.x1) & (b.y1 < anchor.y2) & (b.y2 > anchor.y1)) {
                    visit(i, box_iou(b, area[i], anchor, area_of_anchor));
                }
            }
        };
        look_at(0, start_[0]);
        const T slack = (std::abs(anchor.x1) + std::abs(anchor.y1)) * std::numeric_limits<T>::epsilon() * 2;
        const int c1 = columns_.cell(anchor.x1 - widest_ - slack), c2 = columns_.cell(anchor.x2);
        const int r1 = rows_.cell(anchor.y1 - tallest_ - slack), r2 = rows_.cell(anchor.y2);
        for (int r = r1; r <= r2; ++r) {
            const int64_t row = static_cast<int64_t>(r) * columns_.count;
            look_at(start_[row + c1], start_[row + c2 + 1]);
        }
    }

    std::vector<int64_t> index;  // of the filed targets in the caller's order
    std::vector<Box<T>> box;
    std::vector<T> area;

  private:
    static T longer_side(const Box<T>& b) { return std::max(b.x2 - b.x1, b.y2 - b.y1); }

    // Entry 0 counts the large ones, entry c + 1 those of cell c.
    int64_t entry(const Box<T>& b) const {
        if (longer_side(b) > large_side_) return 0;
        return static_cast<int64_t>(rows_.cell(b.y1)) * columns_.count + columns_.cell(b.x1) + 1;
    }

    void file(const Box<T>* boxes, int64_t count) {
        start_.assign(static_cast<int64_t>(rows_.count) * columns_.count + 1, 0);
        for (int64_t i = 0; i < count; ++i) ++start_[entry(boxes[i])];
        for (size_t c = 1; c < start_.size(); ++c) start_[c] += start_[c - 1];  // the ends of all entries
        std::vector<int64_t> next = start_;
        for (int64_t i = count - 1; i >= 0; --i) {
            const int64_t at = --next[entry(boxes[i])];
            index[at] = i;
            box[at] = boxes[i];
            area[at] = boxes[i].area();
        }
    }

    T widest_ = 0, tallest_ = 0;
    AxisCells<T> columns_, rows_;
    T large_side_ = 0;
    std::vector<int64_t> start_;  // of each cell's targets, and the end; those before the first cell's are large
};

// The anchors of one image with its targets, of which the first is number `first` of all.
template <typename T>
void match(const Box<T>* anchor, int64_t count, const Box<T>* target, int64_t target_count, int64_t first, T high,
           T low, bool allow_low_quality, int64_t* matches) {
    const Targets<T> targets(target, target_count);
    // Best overlap of every target; a worker has a row of its own, and the rows are joined afterwards.
    const int64_t chunks = (count + kGrain - 1) / kGrain;
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(chunks, torch::stable::get_num_threads()));
    std::vector<std::vector<T>> best_rows(workers, std::vector<T>(allow_low_quality ? target_count : 0, T(0)));
    std::vector<T> value_of(count);
    std::vector<int64_t> nearest(count);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
        for (int64_t w = begin; w < end; ++w) {
            std::vector<T>& best = best_rows[w];
            for (int64_t a = count * w / workers; a < count * (w + 1) / workers; ++a) {
                T value = 0;
                int64_t which = 0;  // the first target, where none touches: as max() over a column of zeros
                targets.visit_touching(anchor[a], [&](int64_t position, T iou) {
                    const int64_t index = targets.index[position];
                    if (iou > value || (iou == value && iou > 0 && index < which)) {
                        value = iou;
                        which = index;
                    }
                    if (allow_low_quality && iou > best[position]) best[position] = iou;
                });
                nearest[a] = first + which;
                value_of[a] = value;
                matches[a] = value < low ? kBelowLow : value < high ? kBetween : nearest[a];
            }
        }
    });
    if (!allow_low_quality) return;
    std::vector<T> best(target_count, T(0));
    for (const auto& row : best_rows) {
        for (int64_t g = 0; g < target_count; ++g) best[g] = std::max(best[g], row[g]);
    }
    // Finds anchors that have the highest IoU of some target. A target that overlaps no anchor has a highest IoU of 0,
    // which every anchor that does not overlap it has, too.
    const T lowest = *std::min_element(best.begin(), best.end());
    torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t a = begin; a < end; ++a) {
            bool reached = lowest == T(0);
            if (!reached && value_of[a] >= lowest) {
                targets.visit_touching(anchor[a],
                                       [&](int64_t position, T iou) { reached = reached || iou == best[position]; });
            }
            if (reached) matches[a] = nearest[a];
        }
    });
}

template <typename T>
void check_finite(const Box<T>* boxes, int64_t count, const char* name) {
    for (int64_t i = 0; i < count; ++i) {
        STD_TORCH_CHECK(is_finite(boxes[i]), name, ": a coordinate of box ", i, " is not finite");
    }
}

template <typename T>
void match_images(const Tensor& anchors, const Tensor& targets, const std::vector<int64_t>& anchor_counts,
                  const std::vector<int64_t>& target_counts, T high, T low, bool allow_low_quality, Tensor& out) {
    const auto* anchor = static_cast<const Box<T>*>(anchors.const_data_ptr());
    const auto* target = static_cast<const Box<T>*>(targets.const_data_ptr());
    auto* matches = static_cast<int64_t*>(out.mutable_data_ptr());
    check_finite(anchor, anchors.size(0), "anchors");
    check_finite(target, targets.size(0), "targets");
    int64_t a = 0, g = 0;
    for (size_t image = 0; image < anchor_counts.size(); ++image) {
        const int64_t count = anchor_counts[image], target_count = target_counts[image];
        if (target_count == 0) {
            std::fill_n(matches + a, count, kBelowLow);
        } else {
            match(anchor + a, count, target + g, target_count, g, high, low, allow_low_quality, matches + a);
        }
        a += count;
        g += target_count;
    }
}

Tensor match_boxes(const Tensor& anchors, const Tensor& targets, std::vector<int64_t> anchor_counts,
                   std::vector<int64_t> target_counts, double high, double low, bool allow_low_quality) {
    check_match_boxes(anchors, targets, anchor_counts, target_counts);
    Tensor out = torch::stable::empty({anchors.size(0)}, ScalarType::Long);
    if (anchors.scalar_type() == ScalarType::Double) {
        match_images<double>(anchors, targets, anchor_counts, target_counts, high, low, allow_low_quality, out);
    } else {
        match_images<float>(anchors, targets, anchor_counts, target_counts, static_cast<float>(high),
                            static_cast<float>(low), allow_low_quality, out);
    }
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) { m.impl("match_boxes", TORCH_BOX(&maskrcnn::match_boxes)); }

// Which target each anchor belongs to, without the matrix of all their overlaps.
//
// Two passes over pairs that touch: the first finds the best target of each anchor and the best overlap of each target,
// the second, if asked for, the anchors that reach a target's best. A pair that does not touch has IoU 0 and is
// skipped; targets are sorted by their top edge so that most of them are skipped at once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../checks.h"
#include "../geometry.h"

namespace maskrcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1024;

template <typename T>
class Targets {
  public:
    Targets(const Box<T>* boxes, int64_t count) : index(count), box(count), area(count) {
        std::iota(index.begin(), index.end(), 0);
        std::stable_sort(index.begin(), index.end(), [&](int64_t a, int64_t b) { return boxes[a].y1 < boxes[b].y1; });
        for (int64_t i = 0; i < count; ++i) {
            box[i] = boxes[index[i]];
            area[i] = box[i].area();
            tallest_ = std::max(tallest_, box[i].y2 - box[i].y1);
        }
    }

    // Calls visit(position, IoU) for every target that touches the anchor.
    template <typename Visit>
    void visit_touching(const Box<T>& anchor, const Visit& visit) const {
        const T area_of_anchor = anchor.area();
        // a target that starts above this line ends above the anchor
        const T highest = anchor.y1 - tallest_ - std::abs(anchor.y1) * T(1e-6) - T(1e-6);
        auto i = std::lower_bound(box.begin(), box.end(), highest, [](const Box<T>& b, T y) { return b.y1 < y; }) -
                 box.begin();
        for (; i < static_cast<int64_t>(box.size()) && box[i].y1 < anchor.y2; ++i) {
            const Box<T>& b = box[i];
            if (b.x1 < anchor.x2 && b.x2 > anchor.x1 && b.y2 > anchor.y1) {
                visit(i, box_iou(b, area[i], anchor, area_of_anchor));
            }
        }
    }

    std::vector<int64_t> index;  // of the sorted targets in the caller's order
    std::vector<Box<T>> box;
    std::vector<T> area;

  private:
    T tallest_ = 0;
};

template <typename T>
void match(const Tensor& anchors, const Tensor& targets, T high, T low, bool allow_low_quality, Tensor& out) {
    const int64_t count = anchors.size(0), target_count = targets.size(0);
    const auto* anchor = static_cast<const Box<T>*>(anchors.const_data_ptr());
    auto* matches = static_cast<int64_t*>(out.mutable_data_ptr());
    const Targets<T> sorted(static_cast<const Box<T>*>(targets.const_data_ptr()), target_count);
    const int64_t chunks = (count + kGrain - 1) / kGrain;
    // Best overlap of every target; a chunk of anchors writes to its own row, and the rows are joined afterwards.
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
                sorted.visit_touching(anchor[a], [&](int64_t position, T iou) {
                    const int64_t target = sorted.index[position];
                    if (iou > value || (iou == value && iou > 0 && target < which)) {
                        value = iou;
                        which = target;
                    }
                    if (allow_low_quality && iou > best[target]) best[target] = iou;
                });
                nearest[a] = which;
                value_of[a] = value;
                matches[a] = value < low ? kBelowLow : value < high ? kBetween : which;
            }
        }
    });
    if (!allow_low_quality) return;
    std::vector<T> best(target_count, T(0));
    for (const auto& row : best_rows) {
        for (int64_t g = 0; g < target_count; ++g) best[g] = std::max(best[g], row[g]);
    }
    // A target that no anchor touches has best overlap 0, which every anchor that does not touch it "reaches".
    const bool any_untouched = std::any_of(best.begin(), best.end(), [](T value) { return value == T(0); });
    torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t a = begin; a < end; ++a) {
            bool reached = any_untouched;
            if (!reached && value_of[a] > 0) {
                sorted.visit_touching(anchor[a], [&](int64_t position, T iou) {
                    reached = reached || iou == best[sorted.index[position]];
                });
            }
            if (reached) matches[a] = nearest[a];
        }
    });
}

Tensor match_boxes(const Tensor& anchors, const Tensor& targets, double high, double low, bool allow_low_quality) {
    check_match_boxes(anchors, targets);
    Tensor out = torch::stable::empty({anchors.size(0)}, ScalarType::Long);
    if (targets.size(0) == 0) {
        std::fill_n(static_cast<int64_t*>(out.mutable_data_ptr()), anchors.size(0), kBelowLow);
    } else if (anchors.scalar_type() == ScalarType::Double) {
        match<double>(anchors, targets, high, low, allow_low_quality, out);
    } else {
        match<float>(anchors, targets, static_cast<float>(high), static_cast<float>(low), allow_low_quality, out);
    }
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) { m.impl("match_boxes", TORCH_BOX(&maskrcnn::match_boxes)); }

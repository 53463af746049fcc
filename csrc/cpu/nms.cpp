// Non-maximum suppression, near-linear for boxes that are small against the image.
//
// Greedy NMS compares each box with the boxes kept so far. Only boxes that touch can suppress one another, so the kept
// ones are filed in a grid and a box is compared with those in the grid cells that it covers.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../geometry.h"

namespace maskrcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
struct Kept {
    Box<T> box;
    T area;
};

// A uniform grid over boxes; a box that covers too many cells goes to a list that everyone looks through.
template <typename T>
class Grid {
  public:
    static constexpr int kMaxCells = 64;

    Grid(const Box<T>* boxes, int64_t count) {
        T x2 = 0, y2 = 0, width = 0, height = 0;
        int64_t finite = 0;
        for (int64_t i = 0; i < count; ++i) {
            const Box<T>& b = boxes[i];
            if (!std::isfinite(b.x1 + b.y1 + b.x2 + b.y2)) continue;
            x_ = finite == 0 ? b.x1 : std::min(x_, b.x1);
            y_ = finite == 0 ? b.y1 : std::min(y_, b.y1);
            x2 = finite == 0 ? b.x2 : std::max(x2, b.x2);
            y2 = finite == 0 ? b.y2 : std::max(y2, b.y2);
            width += std::max(b.x2 - b.x1, T(0));
            height += std::max(b.y2 - b.y1, T(0));
            ++finite;
        }
        // Cells about as large as the boxes, but no more of them than boxes.
        const T side = std::sqrt(T(std::max<int64_t>(finite, 1)));
        columns_ = axis_cells(x2 - x_, width / T(std::max<int64_t>(finite, 1)), side, &per_x_);
        rows_ = axis_cells(y2 - y_, height / T(std::max<int64_t>(finite, 1)), side, &per_y_);
        cells_.resize(static_cast<size_t>(columns_) * rows_);
    }

    // Whether a kept box overlaps `box` by more than the threshold; if not, `box` is kept too.
    bool add_unless_suppressed(const Box<T>& box, T threshold) {
        const T area = box.area();
        for (const Kept<T>& kept : large_) {
            if (box_iou(kept.box, kept.area, box, area) > threshold) return false;
        }
        const int c1 = index(box.x1, x_, per_x_, columns_), c2 = index(box.x2, x_, per_x_, columns_);
        const int r1 = index(box.y1, y_, per_y_, rows_), r2 = index(box.y2, y_, per_y_, rows_);
        for (int r = r1; r <= r2; ++r) {
            for (int c = c1; c <= c2; ++c) {
                for (const Kept<T>& kept : cells_[static_cast<size_t>(r) * columns_ + c]) {
                    if (box_iou(kept.box, kept.area, box, area) > threshold) return false;
                }
            }
        }
        if (static_cast<int64_t>(r2 - r1 + 1) * (c2 - c1 + 1) > kMaxCells) {
            large_.push_back({box, area});
            return true;
        }
        for (int r = r1; r <= r2; ++r) {
            for (int c = c1; c <= c2; ++c) cells_[static_cast<size_t>(r) * columns_ + c].push_back({box, area});
        }
        return true;
    }

  private:
    static int axis_cells(T extent, T box_side, T most, T* per_unit) {
        const T cell = std::max(box_side, extent / most);
        if (!(cell > 0) || !std::isfinite(extent)) {
            *per_unit = 0;
            return 1;
        }
        *per_unit = 1 / cell;
        return static_cast<int>(std::min(extent / cell, most)) + 1;
    }

    static int index(T value, T origin, T per_unit, int count) {
        const T position = (value - origin) * per_unit;
        if (!(position > 0)) return 0;
        return position < T(count - 1) ? static_cast<int>(position) : count - 1;
    }

    T x_ = 0, y_ = 0, per_x_ = 0, per_y_ = 0;
    int columns_ = 1, rows_ = 1;
    std::vector<std::vector<Kept<T>>> cells_;
    std::vector<Kept<T>> large_;
};

template <typename T>
void suppress_group(const Box<T>* boxes, int64_t count, T threshold, bool* keep) {
    if (threshold < 0) {  // boxes that do not touch have IoU 0, which is above the threshold: only the first stays
        std::vector<Kept<T>> kept;
        for (int64_t i = 0; i < count; ++i) {
            const T area = boxes[i].area();
            keep[i] = std::none_of(kept.begin(), kept.end(), [&](const Kept<T>& k) {
                return box_iou(k.box, k.area, boxes[i], area) > threshold;
            });
            if (keep[i]) kept.push_back({boxes[i], area});
        }
        return;
    }
    Grid<T> grid(boxes, count);
    for (int64_t i = 0; i < count; ++i) keep[i] = grid.add_unless_suppressed(boxes[i], threshold);
}

template <typename T>
void suppress(const Tensor& boxes, const Tensor& group, double threshold, Tensor& keep) {
    const int64_t count = boxes.size(0);
    const auto* box = static_cast<const Box<T>*>(boxes.const_data_ptr());
    const auto* id = static_cast<const int64_t*>(group.const_data_ptr());
    auto* out = static_cast<bool*>(keep.mutable_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
        const bool bad =
            std::isnan(box[i].x1) || std::isnan(box[i].y1) || std::isnan(box[i].x2) || std::isnan(box[i].y2);
        STD_TORCH_CHECK(!bad, "boxes: a coordinate is NaN");
    }
    std::vector<int64_t> starts{0};
    for (int64_t i = 1; i < count; ++i) {
        if (id[i] != id[i - 1]) starts.push_back(i);
    }
    starts.push_back(count);
    const int64_t groups = static_cast<int64_t>(starts.size()) - 1;
    torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
            suppress_group(box + starts[g], starts[g + 1] - starts[g], static_cast<T>(threshold), out + starts[g]);
        }
    });
}

Tensor nms(const Tensor& boxes, const Tensor& group, double threshold) {
    STD_TORCH_CHECK(boxes.is_contiguous() && group.is_contiguous(), "boxes and group must be contiguous");
    STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must have shape [N, 4]");
    STD_TORCH_CHECK(group.dim() == 1 && group.size(0) == boxes.size(0) && group.scalar_type() == ScalarType::Long,
                    "group must be int64 [N]");
    Tensor keep = torch::stable::empty({boxes.size(0)}, ScalarType::Bool);
    if (boxes.size(0) == 0) return keep;
    if (boxes.scalar_type() == ScalarType::Double) {
        suppress<double>(boxes, group, threshold, keep);
    } else {
        STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float, "boxes must be float32 or float64");
        suppress<float>(boxes, group, threshold, keep);
    }
    return keep;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) { m.impl("nms", TORCH_BOX(&maskrcnn::nms)); }

// Non-maximum suppression, near-linear for boxes that are small against the image.
//
// Greedy NMS compares each box with the boxes kept so far. A pair with an IoU above the threshold has similar sides and
// lies close together: the kept boxes are filed by width, height and corner, and a box is compared only with those that
// these bounds leave over, eight at a time. The bounds have a margin for rounding; the comparison itself is exact.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "multiversion.h"
#include "simd.h"

namespace maskrcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Boxes as columns, so that several are compared at once. A fresh entry's area is NaN, so it suppresses nothing.
template <typename T>
class Columns {
  public:
    // `count` entries, and some behind them that a vector may reach into.
    explicit Columns(int64_t count) {
        for (auto& c : column_) c.assign(count + Simd<T>::kLanes, std::numeric_limits<T>::quiet_NaN());
    }

    void set(int64_t at, const Box<T>& b) {
        column_[0][at] = b.x1;
        column_[1][at] = b.y1;
        column_[2][at] = b.x2;
        column_[3][at] = b.y2;
        column_[4][at] = b.area();
    }

    std::array<const T*, 5> from(int64_t at) const {
        return {&column_[0][at], &column_[1][at], &column_[2][at], &column_[3][at], &column_[4][at]};
    }

  private:
    std::array<std::vector<T>, 5> column_;
};

// Whether one of `count` boxes (or of the next few, rounded up to whole vectors) overlaps `box` by more than the
// threshold: box_iou of geometry.h, operation by operation.
template <typename T>
MASKRCNN_INLINE bool overlaps_impl(const std::array<const T*, 5>& kept, int64_t count, const Box<T>& box, T threshold) {
    using Vec = typename Simd<T>::Vec;
    const auto load = [&](int column, int64_t i) { return *reinterpret_cast<const Vec*>(kept[column] + i); };
    const Vec zero = {};
    const T area = box.area();
    for (int64_t i = 0; i < count; i += Simd<T>::kLanes) {
        const Vec x1 = load(0, i), y1 = load(1, i), x2 = load(2, i), y2 = load(3, i);
        const Vec left = x1 > box.x1 ? x1 : box.x1 + zero, top = y1 > box.y1 ? y1 : box.y1 + zero;
        const Vec right = x2 < box.x2 ? x2 : box.x2 + zero, bottom = y2 < box.y2 ? y2 : box.y2 + zero;
        const Vec width = right - left > zero ? right - left : zero;
        const Vec height = bottom - top > zero ? bottom - top : zero;
        const Vec intersection = width * height;
        const auto above = intersection / (load(4, i) + area - intersection) > threshold;
        const auto bits = reinterpret_cast<const Simd<int64_t>::Vec&>(above);
        if (bits[0] | bits[1] | bits[2] | bits[3]) return true;
    }
    return false;
}

MASKRCNN_MULTIVERSION bool overlaps(const std::array<const float*, 5>& kept, int64_t count, const Box<float>& box,
                                    float threshold) {
    return overlaps_impl(kept, count, box, threshold);
}
MASKRCNN_MULTIVERSION bool overlaps(const std::array<const double*, 5>& kept, int64_t count, const Box<double>& box,
                                    double threshold) {
    return overlaps_impl(kept, count, box, threshold);
}

// Cuts an axis into cells. Positions off the axis belong to its ends.
template <typename T>
struct Axis {
    T origin = 0, per_unit = 0;
    int cells = 1;

    int cell(T position) const {
        const T at = (position - origin) * per_unit;
        return !(at > 0) ? 0 : at < T(cells - 1) ? static_cast<int>(at) : cells - 1;
    }
};

// Sides from 4^k up to 4^(k+1) are of one class.
constexpr int kClasses = 16;

// The kept boxes of one class of widths and heights, filed by their upper left corner.
template <typename T>
struct Shelf {
    int64_t boxes = 0, kept = 0;
    T widest = 0, highest = 0, most_area = 0;
    T x1 = std::numeric_limits<T>::infinity(), y1 = x1, x2 = -x1, y2 = -x1;  // of the corners
    Axis<T> columns, rows;
    int64_t first_cell = 0, first_entry = 0;

    void count(const Box<T>& b) {
        ++boxes;
        widest = std::max(widest, b.x2 - b.x1);
        highest = std::max(highest, b.y2 - b.y1);
        x1 = std::min(x1, b.x1), x2 = std::max(x2, b.x1);
        y1 = std::min(y1, b.y1), y2 = std::max(y2, b.y1);
    }

    // Cells as large as the largest box, but no more of them than boxes.
    void cut() {
        const T most = std::ceil(std::sqrt(static_cast<T>(boxes)));
        columns = cut_axis(x1, x2, widest, most);
        rows = cut_axis(y1, y2, highest, most);
    }

    int64_t cells() const { return boxes ? static_cast<int64_t>(columns.cells) * rows.cells : 0; }
    int64_t cell(int row, int column) const { return first_cell + static_cast<int64_t>(row) * columns.cells + column; }
    int64_t cell_of(const Box<T>& b) const { return cell(rows.cell(b.y1), columns.cell(b.x1)); }

  private:
    static Axis<T> cut_axis(T low, T high, T side, T most) {
        const T extent = high - low, cell = std::max(side, extent / most);
        if (!(cell > 0) || !std::isfinite(extent)) return {low, 0, 1};
        return {low, 1 / cell, static_cast<int>(std::min(extent / cell, most)) + 1};
    }
};

// A box takes part in suppression if it can have an intersection at all.
template <typename T>
bool is_proper(const Box<T>& b) {
    return b.x2 > b.x1 && b.y2 > b.y1 && std::isfinite(b.area()) && std::isfinite(b.x1) && std::isfinite(b.y1);
}

template <typename T>
class Shelves {
  public:
    Shelves(const Box<T>* boxes, int64_t count, T threshold) : threshold_(threshold), filed_(count), linear_(count) {
        T largest = 0;
        for (int64_t i = 0; i < count; ++i) {
            if (!is_proper(boxes[i])) continue;
            const Box<T>& b = boxes[i];
            largest = std::max({largest, b.x2 - b.x1, b.y2 - b.y1});
            reach_ = std::max({reach_, std::abs(b.x1), std::abs(b.y1), std::abs(b.x2), std::abs(b.y2)});
        }
        top_ = half_log(largest);
        for (int64_t i = 0; i < count; ++i) {
            if (is_proper(boxes[i])) shelf_of(boxes[i]).count(boxes[i]);
        }
        int64_t cells = 0, entries = 0;
        for (Shelf<T>& shelf : shelves_) {
            if (shelf.boxes) shelf.cut();
            shelf.first_cell = cells;
            shelf.first_entry = entries;
            cells += shelf.cells();
            entries += shelf.boxes;
        }
        start_.assign(cells + 1, 0);
        filled_.assign(cells, 0);
        for (int64_t i = 0; i < count; ++i) {
            if (is_proper(boxes[i])) ++start_[shelf_of(boxes[i]).cell_of(boxes[i]) + 1];
        }
        for (int64_t c = 0; c < cells; ++c) start_[c + 1] += start_[c];
    }

    bool suppresses(const Box<T>& box) const {
        // IoU > t needs both sides of the smaller box to be more than t times the larger box's.
        const T t = threshold_ * T(1 - 1e-5), width = box.x2 - box.x1, height = box.y2 - box.y1;
        const int w1 = size_class(width * t), w2 = t > 0 ? size_class(width / t) : kClasses - 1;
        const int h1 = size_class(height * t), h2 = t > 0 ? size_class(height / t) : kClasses - 1;
        for (int w = w1; w <= w2; ++w) {
            for (int h = h1; h <= h2; ++h) {
                const Shelf<T>& shelf = shelves_[w * kClasses + h];
                if (shelf.kept && on_shelf(shelf, box, width * t, height * t)) return true;
            }
        }
        return false;
    }

    void add(const Box<T>& box) {
        Shelf<T>& shelf = shelf_of(box);
        const int64_t cell = shelf.cell_of(box);
        filed_.set(start_[cell] + filled_[cell]++, box);
        linear_.set(shelf.first_entry + shelf.kept++, box);
    }

  private:
    // Compares with the boxes whose corner lies where an overlap of at least overlap_w x overlap_h allows it.
    bool on_shelf(const Shelf<T>& shelf, const Box<T>& box, T overlap_w, T overlap_h) const {
        const T margin = reach_ * std::numeric_limits<T>::epsilon() * 8;
        const int c1 = shelf.columns.cell(box.x1 + overlap_w - shelf.widest - margin);
        const int c2 = shelf.columns.cell(box.x2 - overlap_w + margin);
        const int r1 = shelf.rows.cell(box.y1 + overlap_h - shelf.highest - margin);
        const int r2 = shelf.rows.cell(box.y2 - overlap_h + margin);
        if (static_cast<int64_t>(r2 - r1 + 1) * (c2 - c1 + 1) * Simd<T>::kLanes > shelf.kept) {
            return overlaps(linear_.from(shelf.first_entry), shelf.kept, box, threshold_);
        }
        for (int r = r1; r <= r2; ++r) {
            for (int c = c1; c <= c2; ++c) {
                const int64_t cell = shelf.cell(r, c);
                if (filled_[cell] && overlaps(filed_.from(start_[cell]), filled_[cell], box, threshold_)) return true;
            }
        }
        return false;
    }

    static int half_log(T side) { return side > 0 ? std::ilogb(side) >> 1 : 0; }
    int size_class(T side) const {
        if (!(side > 0)) return 0;
        return std::isfinite(side) ? std::clamp(half_log(side) - top_ + kClasses - 1, 0, kClasses - 1) : kClasses - 1;
    }
    Shelf<T>& shelf_of(const Box<T>& b) {
        return shelves_[size_class(b.x2 - b.x1) * kClasses + size_class(b.y2 - b.y1)];
    }

    T threshold_;
    T reach_ = 0;  // largest coordinate
    int top_ = 0;
    std::array<Shelf<T>, kClasses * kClasses> shelves_;
    std::vector<int64_t> start_, filled_;  // entries of each cell: where they start, how many there are
    Columns<T> filed_;                     // kept boxes by cell
    Columns<T> linear_;                    // and by shelf, for a box that reaches most cells
};

constexpr int64_t kFew = 48;  // boxes that are compared faster than filed

template <typename T>
void suppress_group(const Box<T>* boxes, int64_t count, T threshold, bool* keep) {
    if (count <= kFew || !(threshold >= 0)) {  // below 0, boxes suppress one another that do not touch
        Columns<T> kept(count);
        for (int64_t i = 0, n = 0; i < count; ++i) {
            keep[i] = !overlaps(kept.from(0), n, boxes[i], threshold);
            if (keep[i]) kept.set(n++, boxes[i]);
        }
        return;
    }
    Shelves<T> shelves(boxes, count, threshold);
    for (int64_t i = 0; i < count; ++i) {
        const bool proper = is_proper(boxes[i]);
        keep[i] = !proper || !shelves.suppresses(boxes[i]);
        if (proper && keep[i]) shelves.add(boxes[i]);
    }
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
    const T limit = round_down<T>(threshold);
    torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
            suppress_group(box + starts[g], starts[g + 1] - starts[g], limit, out + starts[g]);
        }
    });
}

Tensor nms(const Tensor& boxes, const Tensor& group, double threshold) {
    check_nms(boxes, group);
    Tensor keep = torch::stable::empty({boxes.size(0)}, ScalarType::Bool);
    if (boxes.size(0) == 0) return keep;
    if (boxes.scalar_type() == ScalarType::Double) {
        suppress<double>(boxes, group, threshold, keep);
    } else {
        suppress<float>(boxes, group, threshold, keep);
    }
    return keep;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) { m.impl("nms", TORCH_BOX(&maskrcnn::nms)); }

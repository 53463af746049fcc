// Non-maximum suppression, near-linear for boxes that are small against the image.
//
// Greedy NMS compares each box with the boxes kept so far. A pair with an IoU above the threshold has similar sides and
// lies close together: the kept boxes are filed by width, height and corner, and a box is compared only with those that
// these bounds leave over, a vector of them at a time. The bounds have a margin for rounding; the comparison itself is
// exact.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "axis_cells.h"
#include "multiversion.h"
#include "radix_sort.h"
#include "simd.h"

namespace maskrcnn {
namespace {

// Kept boxes as columns, so that they are compared side by side. The area of an empty lane is NaN: it suppresses
// nothing.
template <typename T>
struct Block {
    static constexpr int kLanes = Simd<T>::kLanes;
    T x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];

    void set(int lane, const Box<T>& b) {
        if (lane == 0) {
            for (T* column : {x1, y1, x2, y2}) std::fill_n(column, kLanes, T(0));
            std::fill_n(area, kLanes, std::numeric_limits<T>::quiet_NaN());
        }
        x1[lane] = b.x1, y1[lane] = b.y1, x2[lane] = b.x2, y2[lane] = b.y2;
        area[lane] = b.area();
    }
};

// Whether one of the boxes of `count` blocks overlaps `box` by more than the threshold: box_iou of geometry.h,
// operation by operation.
template <typename T>
MASKRCNN_INLINE bool overlaps(const Block<T>* blocks, int64_t count, const Box<T>& box, T threshold) {
    using Vec = typename Simd<T>::Vec;
    constexpr int kAtOnce = 4;  // blocks between two looks at the result
    const Vec zero = {};
    const T area = box.area();
    for (int64_t begin = 0; begin < count; begin += kAtOnce) {
        decltype(zero > zero) above = {};
        for (int64_t i = begin; i < std::min(begin + kAtOnce, count); ++i) {
            const auto load = [](const T* lanes) { return *reinterpret_cast<const Vec*>(lanes); };
            const Vec x1 = load(blocks[i].x1), y1 = load(blocks[i].y1), x2 = load(blocks[i].x2);
            const Vec y2 = load(blocks[i].y2);
            const Vec left = x1 > box.x1 ? x1 : box.x1 + zero, top = y1 > box.y1 ? y1 : box.y1 + zero;
            const Vec right = x2 < box.x2 ? x2 : box.x2 + zero, bottom = y2 < box.y2 ? y2 : box.y2 + zero;
            const Vec width = right - left > zero ? right - left : zero;
            const Vec height = bottom - top > zero ? bottom - top : zero;
            const Vec intersection = width * height;
            above |= intersection / (load(blocks[i].area) + area - intersection) > threshold;
        }
        const auto bits = reinterpret_cast<const Simd<int64_t>::Vec&>(above);
        if (bits[0] | bits[1] | bits[2] | bits[3]) return true;
    }
    return false;
}

// Sides of one class differ by less than a factor of 4.
constexpr int kClasses = 16;

// The boxes of one class of widths and heights, filed by their upper left corner.
template <typename T>
struct Shelf {
    int64_t boxes = 0, kept = 0;
    T widest = 0, highest = 0;
    T x1 = std::numeric_limits<T>::infinity(), y1 = x1, x2 = -x1, y2 = -x1;  // of the corners
    AxisCells<T> columns, rows;
    int64_t first_cell = 0;

    void count(const Box<T>& b) {
        ++boxes;
        widest = std::max(widest, b.x2 - b.x1);
        highest = std::max(highest, b.y2 - b.y1);
        x1 = std::min(x1, b.x1), x2 = std::max(x2, b.x1);
        y1 = std::min(y1, b.y1), y2 = std::max(y2, b.y1);
    }

    // Cells as large as the largest box, and so large that a vector of boxes falls into one.
    void cut() {
        const T most = std::ceil(std::sqrt(static_cast<T>(boxes) / Simd<T>::kLanes));
        columns = AxisCells<T>(x1, x2, widest, most);
        rows = AxisCells<T>(y1, y2, highest, most);
    }

    int64_t cells() const { return boxes ? static_cast<int64_t>(columns.count) * rows.count : 0; }
    int64_t cell(int row, int column) const { return first_cell + static_cast<int64_t>(row) * columns.count + column; }
    int64_t cell_of(const Box<T>& b) const { return cell(rows.cell(b.y1), columns.cell(b.x1)); }
};

// A box takes part in suppression if it can have an intersection at all.
template <typename T>
bool is_proper(const Box<T>& b) {
    return b.x2 > b.x1 && b.y2 > b.y1 && std::isfinite(b.area()) && std::isfinite(b.x1) && std::isfinite(b.y1);
}

template <typename T>
class Shelves {
  public:
    Shelves(const Box<T>* boxes, int64_t count, T threshold)
        : threshold_(threshold),
          shrink_(threshold * T(1 - 1e-5)),
          grow_(1 / shrink_),
          shelf_of_(count),
          cell_of_(count) {
        T largest = 0;
        for (int64_t i = 0; i < count; ++i) {
            const Box<T>& b = boxes[i];
            shelf_of_[i] = is_proper(b) ? 0 : kNone;
            if (shelf_of_[i] == kNone) continue;
            largest = std::max({largest, b.x2 - b.x1, b.y2 - b.y1});
            reach_ = std::max({reach_, std::abs(b.x1), std::abs(b.y1), std::abs(b.x2), std::abs(b.y2)});
        }
        top_ = half_log(largest);
        for (int64_t i = 0; i < count; ++i) {
            if (shelf_of_[i] == kNone) continue;
            const Box<T>& b = boxes[i];
            shelf_of_[i] = static_cast<int16_t>(size_class(b.x2 - b.x1) * kClasses + size_class(b.y2 - b.y1));
            shelves_[shelf_of_[i]].count(b);
        }
        file(boxes, count);
    }

    // Whether box i takes part at all.
    bool has(int64_t i) const { return shelf_of_[i] != kNone; }

    MASKRCNN_INLINE bool suppresses(const Box<T>& box) const {
        // IoU > t needs both sides of the smaller box to be more than t times the larger box's.
        const T width = box.x2 - box.x1, height = box.y2 - box.y1;
        const int w1 = size_class(width * shrink_), w2 = size_class(width * grow_);
        const int h1 = size_class(height * shrink_), h2 = size_class(height * grow_);
        for (int w = w1; w <= w2; ++w) {
            for (int h = h1; h <= h2; ++h) {
                const Shelf<T>& shelf = shelves_[w * kClasses + h];
                if (shelf.kept && on_shelf(shelf, box, width * shrink_, height * shrink_)) return true;
            }
        }
        return false;
    }

    // Keeps box i.
    void add(int64_t i, const Box<T>& box) {
        ++shelves_[shelf_of_[i]].kept;
        Cell& cell = cells_[cell_of_[i]];
        blocks_[cell.first + cell.kept / Simd<T>::kLanes].set(cell.kept % Simd<T>::kLanes, box);
        ++cell.kept;
    }

  private:
    static constexpr int16_t kNone = -1;
    struct Cell {
        int32_t first = 0, kept = 0;  // its first block, and the boxes in its blocks
    };

    // Room for every box in its cell's blocks.
    void file(const Box<T>* boxes, int64_t count) {
        int64_t cells = 0;
        for (Shelf<T>& shelf : shelves_) {
            if (shelf.boxes) shelf.cut();
            shelf.first_cell = cells;
            cells += shelf.cells();
        }
        cells_.resize(cells);
        for (int64_t i = 0; i < count; ++i) {
            if (shelf_of_[i] == kNone) continue;
            cell_of_[i] = static_cast<int32_t>(shelves_[shelf_of_[i]].cell_of(boxes[i]));
            ++cells_[cell_of_[i]].first;
        }
        int32_t blocks = 0;
        for (Cell& cell : cells_) {
            const int32_t wanted = (cell.first + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
            cell.first = blocks;
            blocks += wanted;
        }
        blocks_.reset(new Block<T>[blocks]);  // written before they are read
    }

    // Compares with the boxes whose corner lies where an overlap of at least overlap_w x overlap_h allows it.
    MASKRCNN_INLINE bool on_shelf(const Shelf<T>& shelf, const Box<T>& box, T overlap_w, T overlap_h) const {
        const T margin = reach_ * std::numeric_limits<T>::epsilon() * 8;
        const int c1 = shelf.columns.cell(box.x1 + overlap_w - shelf.widest - margin);
        const int c2 = shelf.columns.cell(box.x2 - overlap_w + margin);
        const int r1 = shelf.rows.cell(box.y1 + overlap_h - shelf.highest - margin);
        const int r2 = shelf.rows.cell(box.y2 - overlap_h + margin);
        for (int r = r1; r <= r2; ++r) {
            for (int c = c1; c <= c2; ++c) {
                const Cell& cell = cells_[shelf.cell(r, c)];
                const int64_t blocks = (cell.kept + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
                if (overlaps(&blocks_[cell.first], blocks, box, threshold_)) return true;
            }
        }
        return false;
    }

    // The exponent of a side >= 0, halved; infinity has the largest.
    static int half_log(T side) {
        using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
        Bits bits;
        std::memcpy(&bits, &side, sizeof(bits));
        constexpr int kDigits = std::numeric_limits<T>::digits;
        return static_cast<int>((bits + (Bits(1) << (kDigits - 1))) >> kDigits);  // classes begin at 1, 4, 16, ...
    }
    int size_class(T side) const { return std::clamp(half_log(side) - top_ + kClasses - 1, 0, kClasses - 1); }

    T threshold_, shrink_, grow_;  // the IoU, and how much smaller or larger a side may be, with a margin
    T reach_ = 0;                  // largest coordinate
    int top_ = 0;                  // class of the largest side
    std::array<Shelf<T>, kClasses * kClasses> shelves_;
    std::vector<int16_t> shelf_of_;
    std::vector<int32_t> cell_of_;
    std::vector<Cell> cells_;
    std::unique_ptr<Block<T>[]> blocks_;
};

constexpr int64_t kFew = 48;  // boxes that are compared faster than filed

template <typename T>
MASKRCNN_MULTIVERSION void suppress_group(const Box<T>* boxes, int64_t count, T threshold, bool* keep) {
    // Below 0, boxes suppress one another that do not touch; and of areas too small to be normal numbers the IoU is so
    // far off that sides say nothing about it.
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

// Brings the boxes of a group together, each group in the order in which they came; gives where the groups start, and
// the end.
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
Tensor suppress(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, double threshold) {
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
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += kept[order[i]] = keep[i];
    Tensor out = torch::stable::empty({total}, ScalarType::Long);
    auto* index = static_cast<int64_t*>(out.mutable_data_ptr());
    for (const int32_t i : by_score) {
        if (kept[i]) *index++ = i;
    }
    return out;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, double threshold) {
    check_nms(boxes, scores, idxs);
    if (boxes.size(0) == 0) return torch::stable::empty({0}, ScalarType::Long);
    const auto run = boxes.scalar_type() == ScalarType::Double ? suppress<double> : suppress<float>;
    return run(boxes, scores, idxs, threshold);
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) { m.impl("nms", TORCH_BOX(&maskrcnn::nms)); }

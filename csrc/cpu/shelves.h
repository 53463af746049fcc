// An index of boxes by width, height and position, to find those that may overlap another box without comparing all.
//
// A pair with an IoU above the threshold has similar sides and positions. The bounds on sides and positions have a
// margin for rounding; the comparison itself, with a vector of boxes at a time, is exact.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "../geometry.h"
#include "axis_cells.h"
#include "instruction_set.h"
#include "simd.h"

namespace maskrcnn {
namespace MASKRCNN_SET {

// What is known of a box: kOpen if it depends on boxes that are not in the index.
enum State : uint8_t { kSuppressed, kKept, kOpen };

// Boxes as structure of arrays for vectorized comparison. The area of an empty lane is NaN: it suppresses nothing.
template <typename T>
struct Block {
    static constexpr int kLanes = Simd<T>::kLanes;
    T x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
    uint32_t open;  // bit `lane`: the box is not known to be kept

    void set(int lane, const Box<T>& b, bool is_open) {
        if (lane == 0) {
            for (T* column : {x1, y1, x2, y2}) std::fill_n(column, kLanes, T(0));
            std::fill_n(area, kLanes, std::numeric_limits<T>::quiet_NaN());
            open = 0;
        }
        x1[lane] = b.x1, y1[lane] = b.y1, x2[lane] = b.x2, y2[lane] = b.y2;
        area[lane] = b.area();
        open |= uint32_t{is_open} << lane;
    }

    Block without_open() const {
        Block kept = *this;
        for (int lane = 0; lane < kLanes; ++lane) {
            if (open >> lane & 1) kept.area[lane] = std::numeric_limits<T>::quiet_NaN();
        }
        return kept;
    }
};

// Whether one of the boxes of `count` blocks overlaps `box` by more than the threshold: box_iou of geometry.h,
// operation by operation.
template <typename T>
MASKRCNN_INLINE bool overlaps(const Block<T>* blocks, int64_t count, const Box<T>& box, T threshold) {
    using Vec = typename Simd<T>::Vec;
    constexpr int kAtOnce = 4;  // blocks between two checks of the result
    const Vec zero = {};
    const T area = box.area();
    for (int64_t begin = 0; begin < count; begin += kAtOnce) {
        decltype(zero > zero) above = {};
        for (int64_t i = begin; i < std::min(begin + kAtOnce, count); ++i) {
            const auto load = [](const T* lanes) {
                return *reinterpret_cast<const typename Simd<T>::AnyAddress*>(lanes);
            };
            const Vec x1 = load(blocks[i].x1), y1 = load(blocks[i].y1), x2 = load(blocks[i].x2);
            const Vec y2 = load(blocks[i].y2);
            const Vec left = x1 > box.x1 ? x1 : box.x1 + zero, top = y1 > box.y1 ? y1 : box.y1 + zero;
            const Vec right = x2 < box.x2 ? x2 : box.x2 + zero, bottom = y2 < box.y2 ? y2 : box.y2 + zero;
            const Vec width = right - left > zero ? right - left : zero;
            const Vec height = bottom - top > zero ? bottom - top : zero;
            const Vec intersection = width * height;
            above |= intersection / (load(blocks[i].area) + area - intersection) > threshold;
        }
        const auto bits = reinterpret_cast<const Simd<int64_t>::AnyAddress&>(above);
        if (bits[0] | bits[1] | bits[2] | bits[3]) return true;
    }
    return false;
}

// Bounds for the boxes that have an IoU above a threshold with a box: both sides of the smaller one are more than t
// times those of the larger one, and they overlap by more than t times the larger side on both axes.
template <typename T>
struct PartnerBounds {
    T shrink, grow;  // how much smaller or larger a side may be, with a margin for rounding

    explicit PartnerBounds(T threshold) : shrink(threshold * T(1 - 1e-5)), grow(1 / shrink) {}

    // The first and the last position at which a partner of a box with sides low .. high can begin on that axis, if no
    // partner is longer than `longest`.
    MASKRCNN_INLINE std::pair<T, T> partners(T low, T high, T longest) const {
        constexpr T kRounding = std::numeric_limits<T>::epsilon() * 8;
        const T margin = kRounding * (std::abs(low) + std::abs(high) + longest);
        const T overlap = (high - low) * shrink;
        return {low + overlap - longest - margin, high - overlap + margin};
    }
};

// Sides of one class differ by less than a factor of 4.
constexpr int kClasses = 16;

// The boxes of one class of widths and heights, indexed by their upper left corner.
template <typename T>
struct Shelf {
    int64_t boxes = 0, added = 0;
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

    // Grid cells are at least as large as the largest box, and large enough for a vector of boxes.
    void cut() {
        const T most = std::ceil(std::sqrt(static_cast<T>(boxes) / Simd<T>::kLanes));
        columns = AxisCells<T>(x1, x2, widest, most);
        rows = AxisCells<T>(y1, y2, highest, most);
    }

    int64_t cells() const { return boxes ? static_cast<int64_t>(columns.count) * rows.count : 0; }
    int64_t cell(int row, int column) const { return first_cell + static_cast<int64_t>(row) * columns.count + column; }
    int64_t cell_of(const Box<T>& b) const { return cell(rows.cell(b.y1), columns.cell(b.x1)); }
};

// A box takes part in suppression if it can have an intersection.
template <typename T>
bool is_proper(const Box<T>& b) {
    return b.x2 > b.x1 && b.y2 > b.y1 && std::isfinite(b.area()) && std::isfinite(b.x1) && std::isfinite(b.y1);
}

template <typename T>
class Shelves {
  public:
    Shelves(const Box<T>* boxes, int64_t count, T threshold)
        : threshold_(threshold), bounds_(threshold), shelf_of_(count), cell_of_(count) {
        std::vector<int> sides;
        for (int64_t i = 0; i < count; ++i) {
            const Box<T>& b = boxes[i];
            shelf_of_[i] = is_proper(b) ? 0 : kNone;
            if (shelf_of_[i] == kNone) continue;
            sides.push_back(half_log(std::max(b.x2 - b.x1, b.y2 - b.y1)));
        }
        if (sides.empty()) return;
        std::nth_element(sides.begin(), sides.begin() + sides.size() / 2, sides.end());
        lowest_ = sides[sides.size() / 2] - kClasses / 2;  // outliers do not slow down other boxes
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

    // What the boxes added so far say of another: kSuppressed if one that is kept overlaps it, else kOpen if an open
    // one does.
    MASKRCNN_INLINE State compare(const Box<T>& box) const {
        const T width = box.x2 - box.x1, height = box.y2 - box.y1;
        const int w1 = size_class(width * bounds_.shrink), w2 = size_class(width * bounds_.grow);
        const int h1 = size_class(height * bounds_.shrink), h2 = size_class(height * bounds_.grow);
        State state = kKept;
        for (int w = w1; w <= w2; ++w) {
            for (int h = h1; h <= h2; ++h) {
                const Shelf<T>& shelf = shelves_[w * kClasses + h];
                if (shelf.added && on_shelf(shelf, box, state)) return kSuppressed;
            }
        }
        return state;
    }

    // Adds box i, kept or open.
    void add(int64_t i, const Box<T>& box, State state) {
        ++shelves_[shelf_of_[i]].added;
        any_open_ |= state == kOpen;
        Cell& cell = cells_[cell_of_[i]];
        blocks_[cell.first + cell.added / Simd<T>::kLanes].set(cell.added % Simd<T>::kLanes, box, state == kOpen);
        ++cell.added;
    }

  private:
    static constexpr int16_t kNone = -1;
    struct Cell {
        int32_t first = 0, added = 0;  // its first block, and the boxes in its blocks
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

    // Compares with the boxes whose corner is in the range of partners: whether one that is kept overlaps `box`; if an
    // open one does, `state` becomes kOpen.
    MASKRCNN_INLINE bool on_shelf(const Shelf<T>& shelf, const Box<T>& box, State& state) const {
        const auto [left, right] = bounds_.partners(box.x1, box.x2, shelf.widest);
        const auto [top, bottom] = bounds_.partners(box.y1, box.y2, shelf.highest);
        const int c1 = shelf.columns.cell(left), c2 = shelf.columns.cell(right);
        const int r1 = shelf.rows.cell(top), r2 = shelf.rows.cell(bottom);
        for (int r = r1; r <= r2; ++r) {
            for (int c = c1; c <= c2; ++c) {
                const Cell& cell = cells_[shelf.cell(r, c)];
                const int64_t blocks = (cell.added + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
                if (!overlaps(&blocks_[cell.first], blocks, box, threshold_)) continue;
                if (!any_open_ || a_kept_box_overlaps(&blocks_[cell.first], blocks, box)) return true;
                state = kOpen;
            }
        }
        return false;
    }

    bool a_kept_box_overlaps(const Block<T>* blocks, int64_t count, const Box<T>& box) const {
        for (int64_t i = 0; i < count; ++i) {
            const Block<T> kept = blocks[i].without_open();
            if (overlaps(&kept, 1, box, threshold_)) return true;
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
    int size_class(T side) const { return std::clamp(half_log(side) - lowest_, 0, kClasses - 1); }

    T threshold_;
    PartnerBounds<T> bounds_;
    int lowest_ = 0;  // half_log of the sides of class 0
    bool any_open_ = false;
    std::array<Shelf<T>, kClasses * kClasses> shelves_;
    std::vector<int16_t> shelf_of_;
    std::vector<int32_t> cell_of_;
    std::vector<Cell> cells_;
    std::unique_ptr<Block<T>[]> blocks_;
};

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

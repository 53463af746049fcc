// Division of an axis into cells of equal width, to find boxes near a position.
#pragma once

#include <algorithm>
#include <cmath>

namespace maskrcnn {

template <typename T>
struct AxisCells {
    T origin = 0, per_unit = 0;
    int count = 1;

    AxisCells() = default;

    // Covers low .. high with about `most` cells or fewer, of at least `side`.
    AxisCells(T low, T high, T side, T most) {
        const T extent = high - low, width = std::max(side, extent / most);
        if (!(width > 0) || !std::isfinite(extent)) return;
        origin = low;
        per_unit = 1 / width;
        count = static_cast<int>(std::min(extent / width, most)) + 1;
    }

    // Monotonic in the position, also with rounding; positions outside the axis belong to its first or last cell.
    int cell(T position) const {
        const T at = (position - origin) * per_unit;
        return !(at > 0) ? 0 : at < T(count - 1) ? static_cast<int>(at) : count - 1;
    }
};

}  // namespace maskrcnn

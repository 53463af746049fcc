// An axis cut into cells of equal width: where to look for boxes that lie near a position.
#pragma once

#include <algorithm>
#include <cmath>

namespace maskrcnn {

template <typename T>
struct AxisCells {
    T origin = 0, per_unit = 0;
    int count = 1;

    AxisCells() = default;

    // Covers low .. high with cells of at least `side`, about `most` of them at the most.
    AxisCells(T low, T high, T side, T most) {
        const T extent = high - low, width = std::max(side, extent / most);
        if (!(width > 0) || !std::isfinite(extent)) return;
        origin = low;
        per_unit = 1 / width;
        count = static_cast<int>(std::min(extent / width, most)) + 1;
    }

    // Never falls as the position rises, rounding included; positions off the axis belong to its ends.
    int cell(T position) const {
        const T at = (position - origin) * per_unit;
        return !(at > 0) ? 0 : at < T(count - 1) ? static_cast<int>(at) : count - 1;
    }
};

}  // namespace maskrcnn

// Looks for sampling points on a map that RoIAxis::points_on_map() leaves out, and for ranges that are longer than the
// map asks for. The result is the number of axes with such a point or range.
#include "../../csrc/geometry.h"

#include <cstdint>
#include <random>

namespace {

template <typename T>
int64_t count_wrong(int64_t seed, int64_t axes) {
    std::mt19937_64 random(seed);
    const auto number = [&](int64_t low, int64_t high) {
        return low + static_cast<int64_t>(random() % (high - low + 1));
    };
    int64_t wrong = 0;
    for (int64_t i = 0; i < axes; ++i) {
        const T unit = std::ldexp(T(1), static_cast<int>(number(-8, 12)));
        const T low = T(number(-1000, 1000)) * unit, high = T(number(-1000, 1000)) * unit;
        const int bins = static_cast<int>(number(1, 9)), size = static_cast<int>(number(1, 40));
        const int ratio = number(0, 2) ? 0 : static_cast<int>(number(1, 300));
        const maskrcnn::RoIAxis<T> axis(low, high, T(0.25), bins, ratio, number(0, 1));
        if (axis.grid > 100000) continue;
        const int bin = static_cast<int>(number(0, bins - 1));
        int first, last;
        axis.points_on_map(bin, size, &first, &last);
        bool good = 0 <= first && first <= last && last <= axis.grid;
        for (int point = 0; point < axis.grid; ++point) {
            const maskrcnn::BilinearTap<T> tap(axis.position(bin, point), size);
            if (tap.weight_low + tap.weight_high != 0 && (point < first || point >= last)) good = false;
        }
        const double step = static_cast<double>(axis.bin) / axis.grid;
        if (axis.grid > 2 * size && step > 0 && last - first > (size + 1) / step + 4 + 0.01 / step) good = false;
        wrong += !good;
    }
    return wrong;
}

}  // namespace

extern "C" int64_t count_wrong_axes(int64_t seed, int64_t axes) {
    return count_wrong<float>(seed, axes) + count_wrong<double>(seed + 1, axes);
}

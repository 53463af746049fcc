// Merged bilinear taps of one axis of a RoI. Compiled separately from the sums that use them, which may use fused
// multiply-adds: here the last bit of a length determines the number of sampling points of a bin.
#include "axis_taps.h"

namespace maskrcnn {
namespace {

// The index of `value` among the last two entries from `first` on; the end if it is not there.
int find(const std::vector<int>& entries, int first, int value) {
    const int end = static_cast<int>(entries.size());
    for (int i = end - 1; i >= std::max(first, end - 2); --i) {
        if (entries[i] == value) return i;
    }
    return end;
}

}  // namespace

template <typename T>
void AxisTaps<T>::compute(T low, T high, T scale, int bins, int sampling_ratio, bool aligned, int size) {
    const RoIAxis<T> axis(low, high, scale, bins, sampling_ratio, aligned);
    pixel.clear();
    slot.clear();
    weight.clear();
    start.assign(1, 0);
    for (int bin = 0; bin < bins; ++bin) {
        int first, last;
        axis.points_on_map(bin, size, &first, &last);
        for (int point = first; point < last; ++point) {
            const BilinearTap<T> tap(axis.position(bin, point), size);
            add(tap.low, tap.weight_low / T(axis.grid));
            add(tap.high, tap.weight_high / T(axis.grid));
        }
        start.push_back(static_cast<int>(slot.size()));
    }
}

// Positions increase, so a pixel that occurred before is one of the last two, of this bin and of all. (For an inverted
// box they decrease, and a pixel may be listed twice: its weights still add up.)
template <typename T>
void AxisTaps<T>::add(int at, T value) {
    if (value == T(0)) return;
    const int place = find(pixel, 0, at);
    if (place == pixels()) pixel.push_back(at);
    const int entry = find(slot, start.back(), place);
    if (entry == static_cast<int>(slot.size())) {
        slot.push_back(place);
        weight.push_back(T(0));
    }
    weight[entry] += value;
}

template class AxisTaps<float>;
template class AxisTaps<double>;

}  // namespace maskrcnn

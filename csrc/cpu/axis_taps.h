// Merged bilinear taps of one axis of a RoI.
#pragma once

#include <algorithm>
#include <vector>

#include "../geometry.h"

namespace maskrcnn {

// For each bin of one axis: the pixels that it reads, each once, with the sum of its weights over the sampling points.
template <typename T>
class AxisTaps {
  public:
    void compute(const RoIAxis<T>& axis, int bins, int size) {
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

    int bins() const { return static_cast<int>(start.size()) - 1; }
    int pixels() const { return static_cast<int>(pixel.size()); }

    // The most pixels from the first to the last that a bin reads.
    int most() const {
        int most = 1;
        for (int b = 0; b < bins(); ++b) {
            if (start[b] == start[b + 1]) continue;
            const auto [low, high] = std::minmax_element(&slot[start[b]], &slot[start[b]] + start[b + 1] - start[b]);
            most = std::max(most, *high - *low + 1);
        }
        return most;
    }

    std::vector<int> pixel;  // all that the bins read, each once
    std::vector<int> start;  // bin b reads pixel[slot[i]] with weight[i], i from start[b] to start[b + 1]
    std::vector<int> slot;
    std::vector<T> weight;

  private:
    // Positions rise, so a pixel seen before is one of the last two, in this bin as in all. (Where a box is upside down
    // they fall, and a pixel may come twice: its weights add up all the same.)
    void add(int at, T value) {
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

    // Where `value` is among the last two entries from `first` on; the end if it is not there.
    static int find(const std::vector<int>& entries, int first, int value) {
        const int end = static_cast<int>(entries.size());
        for (int i = end - 1; i >= std::max(first, end - 2); --i) {
            if (entries[i] == value) return i;
        }
        return end;
    }
};

}  // namespace maskrcnn

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
            start.push_back(static_cast<int>(pixel.size()));
        }
    }

    std::vector<int> pixel;  // of bin b: entries start[b] to start[b + 1]
    std::vector<T> weight;
    std::vector<int> start;

  private:
    void add(int at, T value) {
        if (value == T(0)) return;
        // positions rise, so a pixel seen before in this bin is one of the last two
        const int first = start.back(), last = static_cast<int>(pixel.size()) - 1;
        for (int i = last; i >= std::max(first, last - 1); --i) {
            if (pixel[i] == at) {
                weight[i] += value;
                return;
            }
        }
        pixel.push_back(at);
        weight.push_back(value);
    }
};

}  // namespace maskrcnn

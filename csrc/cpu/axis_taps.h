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
    // Of a RoI from `low` to `high` in pixels of the image, on a map of `size` pixels; see RoIAxis.
    void compute(T low, T high, T scale, int bins, int sampling_ratio, bool aligned, int size);

    int bins() const { return static_cast<int>(start.size()) - 1; }
    int pixels() const { return static_cast<int>(pixel.size()); }

    // The largest number of pixels from the first to the last that a bin reads.
    int most() const {
        int most = 1;
        for (int b = 0; b < bins(); ++b) {
            if (start[b] == start[b + 1]) continue;
            const auto [low, high] = std::minmax_element(&slot[start[b]], &slot[start[b]] + start[b + 1] - start[b]);
            most = std::max(most, *high - *low + 1);
        }
        return most;
    }

    std::vector<int> pixel;  // all pixels that the bins read, each once
    std::vector<int> start;  // bin b reads pixel[slot[i]] with weight[i], i from start[b] to start[b + 1]
    std::vector<int> slot;
    std::vector<T> weight;

  private:
    void add(int at, T value);
};

}  // namespace maskrcnn

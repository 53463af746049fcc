// RoIAlign over the levels of a pyramid, forward and backward, channels last.
//
// The sampling points of a bin are a grid, so its value is a sum over few rows times few columns, each with a weight
// that is computed once for the RoI ("merged taps"). What remains is, for each bin, a weighted sum of some rows of C
// channels: contiguous, vectorised, and read once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "axis_taps.h"
#include "huge_pages.h"
#include "multiversion.h"
#include "simd.h"

namespace maskrcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A bin's weighted sum over rows of channels: out[c] = sum_t weights[t] * taps[t][c].
template <typename T>
MASKRCNN_INLINE void gather_impl(const T* const* taps, const T* weights, int count, T* out, int64_t channels) {
    using Vec = typename Simd<T>::Vec;
    constexpr int kVecs = 8;  // as many sums at a time as hide the latency of a multiply-add
    constexpr int kBlock = kVecs * Simd<T>::kLanes;
    int64_t c = 0;
    for (; c + kBlock <= channels; c += kBlock) {
        Vec sum[kVecs] = {};
        for (int t = 0; t < count; ++t) {
            const auto* tap = reinterpret_cast<const Vec*>(taps[t] + c);
            const T weight = weights[t];
#pragma GCC unroll 8
            for (int i = 0; i < kVecs; ++i) sum[i] += weight * tap[i];
        }
        auto* to = reinterpret_cast<Vec*>(out + c);
#pragma GCC unroll 8
        for (int i = 0; i < kVecs; ++i) to[i] = sum[i];
    }
    for (; c < channels; ++c) {
        T sum = 0;
        for (int t = 0; t < count; ++t) sum += weights[t] * taps[t][c];
        out[c] = sum;
    }
}

// Its transpose: taps[t][c] += weights[t] * grad[c].
template <typename T>
MASKRCNN_INLINE void scatter_impl(T* const* taps, const T* weights, int count, const T* grad, int64_t channels) {
    using Vec = typename Simd<T>::Vec;
    constexpr int kVecs = 4;
    constexpr int kBlock = kVecs * Simd<T>::kLanes;
    int64_t c = 0;
    for (; c + kBlock <= channels; c += kBlock) {
        const auto* from = reinterpret_cast<const Vec*>(grad + c);
        Vec value[kVecs];
#pragma GCC unroll 4
        for (int i = 0; i < kVecs; ++i) value[i] = from[i];
        for (int t = 0; t < count; ++t) {
            auto* tap = reinterpret_cast<Vec*>(taps[t] + c);
            const T weight = weights[t];
#pragma GCC unroll 4
            for (int i = 0; i < kVecs; ++i) tap[i] += weight * value[i];
        }
    }
    for (; c < channels; ++c) {
        for (int t = 0; t < count; ++t) taps[t][c] += weights[t] * grad[c];
    }
}

MASKRCNN_MULTIVERSION void gather(const float* const* t, const float* w, int n, float* out, int64_t c) {
    gather_impl(t, w, n, out, c);
}
MASKRCNN_MULTIVERSION void gather(const double* const* t, const double* w, int n, double* out, int64_t c) {
    gather_impl(t, w, n, out, c);
}
MASKRCNN_MULTIVERSION void scatter(float* const* t, const float* w, int n, const float* grad, int64_t c) {
    scatter_impl(t, w, n, grad, c);
}
MASKRCNN_MULTIVERSION void scatter(double* const* t, const double* w, int n, const double* grad, int64_t c) {
    scatter_impl(t, w, n, grad, c);
}

// One level of the pyramid, [B, height, width, C].
template <typename T>
struct Level {
    T* data;
    int height, width;
    T scale;
};

struct Bins {
    int height, width, sampling_ratio;
    bool aligned;
};

// Calls visit(bin, taps, weights, count) for every bin of a RoI; taps point at the pixels' channels in `image`.
template <typename T, typename Pixel>
class RoIWalker {
  public:
    template <typename Visit>
    void walk(const T* roi, const Level<Pixel>& level, Pixel* image, int64_t channels, const Bins& bins,
              const Visit& visit) {
        const T scale = level.scale;
        rows_.compute(RoIAxis<T>(roi[2], roi[4], scale, bins.height, bins.sampling_ratio, bins.aligned), bins.height,
                      level.height);
        columns_.compute(RoIAxis<T>(roi[1], roi[3], scale, bins.width, bins.sampling_ratio, bins.aligned), bins.width,
                         level.width);
        for (int y = 0; y < bins.height; ++y) {
            for (int x = 0; x < bins.width; ++x) {
                taps_.clear();
                weights_.clear();
                for (int r = rows_.start[y]; r < rows_.start[y + 1]; ++r) {
                    Pixel* row = image + static_cast<int64_t>(rows_.pixel[r]) * level.width * channels;
                    for (int c = columns_.start[x]; c < columns_.start[x + 1]; ++c) {
                        taps_.push_back(row + columns_.pixel[c] * channels);
                        weights_.push_back(rows_.weight[r] * columns_.weight[c]);
                    }
                }
                visit(y * bins.width + x, taps_.data(), weights_.data(), static_cast<int>(taps_.size()));
            }
        }
    }

  private:
    AxisTaps<T> rows_, columns_;
    std::vector<Pixel*> taps_;
    std::vector<T> weights_;
};

// The values of RoIs: finite, and of an image and a level that are there.
void check_roi_values(const Tensor& rois, const Tensor& level, int64_t levels, int64_t batch) {
    const auto* l = static_cast<const int64_t*>(level.const_data_ptr());
    const bool is_double = rois.scalar_type() == ScalarType::Double;
    for (int64_t k = 0; k < rois.size(0); ++k) {
        STD_TORCH_CHECK(l[k] >= 0 && l[k] < levels, "level: ", l[k], " of roi ", k, " is not a level");
        double value[5];
        for (int i = 0; i < 5; ++i) {
            value[i] = is_double ? static_cast<const double*>(rois.const_data_ptr())[5 * k + i]
                                 : static_cast<const float*>(rois.const_data_ptr())[5 * k + i];
            STD_TORCH_CHECK(std::isfinite(value[i]), "boxes: roi ", k, " has a coordinate that is not finite");
        }
        STD_TORCH_CHECK(value[0] >= 0 && value[0] < static_cast<double>(batch), "boxes: roi ", k, " is of image ",
                        value[0], ", the batch has ", batch);
    }
}

// The order in which to visit the RoIs: neighbours one after another, so that the pixels that they share are in the
// cache.
template <typename T>
std::vector<int64_t> by_place(const T* rois, const int64_t* level_of, int64_t count) {
    struct Key {
        int64_t level;
        T image, band, x;
        int64_t k;
    };
    constexpr T kBand = 64;  // pixels
    std::vector<Key> keys(count);
    for (int64_t k = 0; k < count; ++k) {
        const T* roi = rois + 5 * k;
        keys[k] = {level_of[k], roi[0], std::floor(roi[2] / kBand), roi[1], k};
    }
    std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
        return std::tie(a.level, a.image, a.band, a.x, a.k) < std::tie(b.level, b.image, b.band, b.x, b.k);
    });
    std::vector<int64_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = keys[i].k;
    return order;
}

template <typename T>
void forward(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& level,
             const std::vector<double>& scales, const Bins& bins, Tensor& out) {
    std::vector<Level<const T>> levels;
    for (size_t l = 0; l < features.size(); ++l) {
        levels.push_back({static_cast<const T*>(features[l].const_data_ptr()), static_cast<int>(features[l].size(1)),
                          static_cast<int>(features[l].size(2)), static_cast<T>(scales[l])});
    }
    const int64_t channels = features[0].size(3), roi_size = channels * bins.height * bins.width;
    const auto* roi = static_cast<const T*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    auto* result = static_cast<T*>(out.mutable_data_ptr());
    const auto order = by_place(roi, level_of, rois.size(0));
    torch::stable::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
        RoIWalker<T, const T> walker;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t k = order[i];
            const Level<const T>& map = levels[level_of[k]];
            const T* image = map.data + static_cast<int64_t>(roi[5 * k]) * map.height * map.width * channels;
            walker.walk(roi + 5 * k, map, image, channels, bins,
                        [&](int bin, const T* const* taps, const T* weights, int count) {
                            gather(taps, weights, count, result + k * roi_size + bin * channels, channels);
                        });
        }
    });
}

// Threads share out the channels, so that no two write to the same place and every sum has the same order whatever the
// number of threads.
template <typename T>
void backward(const Tensor& grad, const Tensor& rois, const Tensor& level, const std::vector<double>& scales,
              const Bins& bins, std::vector<Tensor>& out) {
    constexpr int64_t kBlock = 64 / sizeof(T);  // a cache line
    std::vector<Level<T>> levels;
    for (size_t l = 0; l < out.size(); ++l) {
        levels.push_back({static_cast<T*>(out[l].mutable_data_ptr()), static_cast<int>(out[l].size(1)),
                          static_cast<int>(out[l].size(2)), static_cast<T>(scales[l])});
    }
    const int64_t channels = grad.size(3), roi_size = channels * bins.height * bins.width;
    const auto* roi = static_cast<const T*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    const auto* gradient = static_cast<const T*>(grad.const_data_ptr());
    const auto order = by_place(roi, level_of, rois.size(0));
    torch::stable::parallel_for(0, (channels + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kBlock, width = std::min(end * kBlock, channels) - first;
        RoIWalker<T, T> walker;
        for (const int64_t k : order) {
            const Level<T>& map = levels[level_of[k]];
            T* image = map.data + static_cast<int64_t>(roi[5 * k]) * map.height * map.width * channels + first;
            walker.walk(roi + 5 * k, map, image, channels, bins,
                        [&](int bin, T* const* taps, const T* weights, int count) {
                            scatter(taps, weights, count, gradient + k * roi_size + bin * channels + first, width);
                        });
        }
    });
}

Tensor roi_align(std::vector<Tensor> features, const Tensor& rois, const Tensor& level, std::vector<double> scales,
                 int64_t size_h, int64_t size_w, int64_t sampling_ratio, bool aligned) {
    check_roi_align(features, rois, level, scales.size(), size_h, size_w, sampling_ratio);
    check_roi_values(rois, level, static_cast<int64_t>(features.size()), features[0].size(0));
    const ScalarType type = rois.scalar_type();
    Tensor out = torch::stable::empty({rois.size(0), size_h, size_w, features[0].size(3)}, type);
    use_huge_pages(out);
    const Bins bins{static_cast<int>(size_h), static_cast<int>(size_w), static_cast<int>(sampling_ratio), aligned};
    const auto run = type == ScalarType::Double ? forward<double> : forward<float>;
    run(features, rois, level, scales, bins, out);
    return out;
}

std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level,
                                       std::vector<double> scales, int64_t batch, std::vector<int64_t> heights,
                                       std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned,
                                       bool /*deterministic: it always is*/) {
    check_roi_align_backward(grad, rois, level, scales.size(), heights, widths);
    check_roi_values(rois, level, static_cast<int64_t>(scales.size()), batch);
    std::vector<Tensor> out;
    for (size_t l = 0; l < scales.size(); ++l) {
        Tensor map = torch::stable::empty({batch, heights[l], widths[l], grad.size(3)}, grad.scalar_type());
        use_huge_pages(map);
        torch::stable::zero_(map);
        out.push_back(map);
    }
    const Bins bins{static_cast<int>(grad.size(1)), static_cast<int>(grad.size(2)), static_cast<int>(sampling_ratio),
                    aligned};
    const auto run = grad.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
    run(grad, rois, level, scales, bins, out);
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) {
    m.impl("roi_align", TORCH_BOX(&maskrcnn::roi_align));
    m.impl("roi_align_backward", TORCH_BOX(&maskrcnn::roi_align_backward));
}

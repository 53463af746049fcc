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
#include <cstring>
#include <vector>

#include "axis_taps.h"
#include "multiversion.h"

namespace maskrcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A bin's weighted sum over rows of channels: out[c] = sum_t weights[t] * taps[t][c].
template <typename T>
MASKRCNN_INLINE void gather_impl(const T* const* taps, const T* weights, int count, T* out, int64_t channels) {
    constexpr int kBlock = 64;
    int64_t c = 0;
    for (; c + kBlock <= channels; c += kBlock) {
        T sum[kBlock] = {};
        for (int t = 0; t < count; ++t) {
            const T* tap = taps[t] + c;
            const T weight = weights[t];
            for (int i = 0; i < kBlock; ++i) sum[i] += weight * tap[i];
        }
        for (int i = 0; i < kBlock; ++i) out[c + i] = sum[i];
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
    for (int t = 0; t < count; ++t) {
        T* tap = taps[t];
        const T weight = weights[t];
        for (int64_t c = 0; c < channels; ++c) tap[c] += weight * grad[c];
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

// Calls visit(bin, offsets, weights, count) for every bin of one RoI; offsets are of pixels in its image's map.
template <typename T>
class RoIWalker {
  public:
    template <typename Visit>
    void walk(const T* roi, T scale, int size_h, int size_w, int height, int width, int sampling_ratio, bool aligned,
              const Visit& visit) {
        rows_.compute(RoIAxis<T>(roi[2], roi[4], scale, size_h, sampling_ratio, aligned), size_h, height);
        columns_.compute(RoIAxis<T>(roi[1], roi[3], scale, size_w, sampling_ratio, aligned), size_w, width);
        for (int y = 0; y < size_h; ++y) {
            for (int x = 0; x < size_w; ++x) {
                offsets_.clear();
                weights_.clear();
                for (int r = rows_.start[y]; r < rows_.start[y + 1]; ++r) {
                    for (int c = columns_.start[x]; c < columns_.start[x + 1]; ++c) {
                        offsets_.push_back(static_cast<int64_t>(rows_.pixel[r]) * width + columns_.pixel[c]);
                        weights_.push_back(rows_.weight[r] * columns_.weight[c]);
                    }
                }
                visit(y * size_w + x, offsets_, weights_);
            }
        }
    }

  private:
    AxisTaps<T> rows_, columns_;
    std::vector<int64_t> offsets_;
    std::vector<T> weights_;
};

void check_rois(const Tensor& rois, const Tensor& level, int64_t levels, int64_t batch) {
    STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5 && rois.is_contiguous(), "rois must be contiguous [K, 5]");
    STD_TORCH_CHECK(level.dim() == 1 && level.size(0) == rois.size(0) && level.is_contiguous() &&
                        level.scalar_type() == ScalarType::Long,
                    "level must be contiguous int64 [K]");
    const auto* l = static_cast<const int64_t*>(level.const_data_ptr());
    const bool is_double = rois.scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(is_double || rois.scalar_type() == ScalarType::Float, "rois must be float32 or float64");
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

template <typename T>
void forward(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& level,
             const std::vector<double>& scales, int size_h, int size_w, int sampling_ratio, bool aligned, Tensor& out) {
    const int64_t channels = features[0].size(3);
    const auto* roi = static_cast<const T*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    auto* result = static_cast<T*>(out.mutable_data_ptr());
    torch::stable::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
        RoIWalker<T> walker;
        std::vector<const T*> taps;
        for (int64_t k = begin; k < end; ++k) {
            const Tensor& map = features[level_of[k]];
            const int height = static_cast<int>(map.size(1)), width = static_cast<int>(map.size(2));
            const T* image = static_cast<const T*>(map.const_data_ptr()) +
                             static_cast<int64_t>(roi[5 * k]) * height * width * channels;
            T* bins = result + k * size_h * size_w * channels;
            walker.walk(roi + 5 * k, static_cast<T>(scales[level_of[k]]), size_h, size_w, height, width, sampling_ratio,
                        aligned, [&](int bin, const std::vector<int64_t>& offsets, const std::vector<T>& weights) {
                            taps.resize(offsets.size());
                            for (size_t t = 0; t < offsets.size(); ++t) taps[t] = image + offsets[t] * channels;
                            gather(taps.data(), weights.data(), static_cast<int>(taps.size()), bins + bin * channels,
                                   channels);
                        });
        }
    });
}

// Threads share out the channels, so that no two write to the same place and every sum has the same order whatever the
// number of threads.
template <typename T>
void backward(const Tensor& grad, const Tensor& rois, const Tensor& level, const std::vector<double>& scales,
              int sampling_ratio, bool aligned, std::vector<Tensor>& out) {
    constexpr int64_t kBlock = 16;  // a cache line of floats
    const int size_h = static_cast<int>(grad.size(1)), size_w = static_cast<int>(grad.size(2));
    const int64_t channels = grad.size(3);
    const auto* roi = static_cast<const T*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    const auto* gradient = static_cast<const T*>(grad.const_data_ptr());
    torch::stable::parallel_for(0, (channels + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kBlock, count = std::min(end * kBlock, channels) - first;
        RoIWalker<T> walker;
        std::vector<T*> taps;
        for (int64_t k = 0; k < rois.size(0); ++k) {
            Tensor& map = out[level_of[k]];
            const int height = static_cast<int>(map.size(1)), width = static_cast<int>(map.size(2));
            T* image = static_cast<T*>(map.mutable_data_ptr()) +
                       static_cast<int64_t>(roi[5 * k]) * height * width * channels + first;
            const T* bins = gradient + k * size_h * size_w * channels + first;
            walker.walk(roi + 5 * k, static_cast<T>(scales[level_of[k]]), size_h, size_w, height, width, sampling_ratio,
                        aligned, [&](int bin, const std::vector<int64_t>& offsets, const std::vector<T>& weights) {
                            taps.resize(offsets.size());
                            for (size_t t = 0; t < offsets.size(); ++t) taps[t] = image + offsets[t] * channels;
                            scatter(taps.data(), weights.data(), static_cast<int>(taps.size()), bins + bin * channels,
                                    count);
                        });
        }
    });
}

Tensor roi_align(std::vector<Tensor> features, const Tensor& rois, const Tensor& level, std::vector<double> scales,
                 int64_t size_h, int64_t size_w, int64_t sampling_ratio, bool aligned) {
    STD_TORCH_CHECK(!features.empty() && features.size() == scales.size(), "scales: one for each feature map");
    const ScalarType type = features[0].scalar_type();
    for (const Tensor& map : features) {
        STD_TORCH_CHECK(map.dim() == 4 && map.is_contiguous() && map.scalar_type() == type, "features must be ",
                        "contiguous [B, H, W, C] of one dtype");
        STD_TORCH_CHECK(map.size(0) == features[0].size(0) && map.size(3) == features[0].size(3),
                        "features must have the same batch and channels");
    }
    STD_TORCH_CHECK(rois.scalar_type() == type, "rois must have the dtype of the features");
    check_rois(rois, level, static_cast<int64_t>(features.size()), features[0].size(0));
    Tensor out = torch::stable::empty({rois.size(0), size_h, size_w, features[0].size(3)}, type);
    const auto run = type == ScalarType::Double ? forward<double> : forward<float>;
    run(features, rois, level, scales, static_cast<int>(size_h), static_cast<int>(size_w),
        static_cast<int>(sampling_ratio), aligned, out);
    return out;
}

std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level,
                                       std::vector<double> scales, int64_t batch, std::vector<int64_t> heights,
                                       std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned,
                                       bool /*deterministic: it always is*/) {
    STD_TORCH_CHECK(grad.dim() == 4 && grad.is_contiguous() && grad.size(0) == rois.size(0), "grad must be contiguous ",
                    "[K, size_h, size_w, C]");
    STD_TORCH_CHECK(rois.scalar_type() == grad.scalar_type(), "rois must have the dtype of grad");
    STD_TORCH_CHECK(heights.size() == scales.size() && widths.size() == scales.size(), "heights, widths, scales differ");
    check_rois(rois, level, static_cast<int64_t>(scales.size()), batch);
    std::vector<Tensor> out;
    for (size_t l = 0; l < scales.size(); ++l) {
        Tensor map = torch::stable::empty({batch, heights[l], widths[l], grad.size(3)}, grad.scalar_type());
        torch::stable::zero_(map);
        out.push_back(map);
    }
    const auto run = grad.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
    run(grad, rois, level, scales, static_cast<int>(sampling_ratio), aligned, out);
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) {
    m.impl("roi_align", TORCH_BOX(&maskrcnn::roi_align));
    m.impl("roi_align_backward", TORCH_BOX(&maskrcnn::roi_align_backward));
}

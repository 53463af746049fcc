// RoIAlign over the levels of a pyramid, forward and backward, channels last.
//
// Forward: a thread for 16 bytes of channels of one bin; the threads of a warp read and write neighbouring channels.
// Backward: the same threads add atomically to the pixels; or, in the deterministic mode, a block owns a row of a map
// and visits the RoIs over it in order, so that every sum is taken in the same order each time.
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "launch.cuh"

namespace maskrcnn {
namespace {

// Neighbouring channels that one thread works on.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Channels {
    T value[kCount];

    __device__ void add(T weight, const Channels& other) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) value[i] += weight * other.value[i];
    }
};

constexpr int kMostLevels = 8;

// The maps [B, height, width, C] of the pyramid, as a kernel's argument.
template <typename T>
struct Pyramid {
    T* data[kMostLevels];
    int height[kMostLevels], width[kMostLevels];
    T scale[kMostLevels];
    int64_t levels, batch, channels;
};

struct Bins {
    int height, width, sampling_ratio;
    bool aligned;
};

// One RoI on its map. `valid` is false where the image or the level is out of range: the host cannot look.
template <typename T>
struct RoI {
    bool valid;
    int64_t level, image;
    RoIAxis<T> rows, columns;

    __device__ RoI(const T* roi, int64_t of_level, const Pyramid<T>& pyramid, const Bins& bins)
        : valid(of_level >= 0 && of_level < pyramid.levels && roi[0] >= T(0) && roi[0] < T(pyramid.batch)),
          level(valid ? of_level : 0),
          image(valid ? static_cast<int64_t>(roi[0]) : 0),
          rows(roi[2], roi[4], pyramid.scale[level], bins.height, bins.sampling_ratio, bins.aligned),
          columns(roi[1], roi[3], pyramid.scale[level], bins.width, bins.sampling_ratio, bins.aligned) {}

    __device__ T points() const { return T(rows.grid) * T(columns.grid); }
};

// Calls visit(row, column, weight) for the four pixels of every sampling point of a bin that lies on the map.
template <typename T, typename Visit>
__device__ void visit_pixels(const RoI<T>& roi, int height, int width, int y, int x, const Visit& visit) {
    int first_row, last_row, first_column, last_column;
    roi.rows.points_on_map(y, height, &first_row, &last_row);
    roi.columns.points_on_map(x, width, &first_column, &last_column);
    for (int r = first_row; r < last_row; ++r) {
        const BilinearTap<T> row(roi.rows.position(y, r), height);
        if (row.weight_low + row.weight_high == T(0)) continue;
        for (int c = first_column; c < last_column; ++c) {
            const BilinearTap<T> column(roi.columns.position(x, c), width);
            if (column.weight_low + column.weight_high == T(0)) continue;
            visit(row.low, column.low, row.weight_low * column.weight_low);
            visit(row.low, column.high, row.weight_low * column.weight_high);
            visit(row.high, column.low, row.weight_high * column.weight_low);
            visit(row.high, column.high, row.weight_high * column.weight_high);
        }
    }
}

template <typename T, int kCount>
__global__ void forward(Pyramid<T> pyramid, const T* rois, const int64_t* level_of, int64_t count, Bins bins, T* out) {
    const int64_t groups = pyramid.channels / kCount;
    MASKRCNN_FOR_EACH(index, count * bins.height * bins.width * groups) {
        const int64_t c = index % groups, bin = index / groups;
        const int x = static_cast<int>(bin % bins.width), y = static_cast<int>(bin / bins.width % bins.height);
        const int64_t k = bin / (static_cast<int64_t>(bins.width) * bins.height);
        const RoI<T> roi(rois + 5 * k, level_of[k], pyramid, bins);
        Channels<T, kCount> sum = {};
        if (roi.valid && roi.points() > T(0)) {
            const int height = pyramid.height[roi.level], width = pyramid.width[roi.level];
            const auto* map = reinterpret_cast<const Channels<T, kCount>*>(pyramid.data[roi.level]) +
                              roi.image * height * width * groups + c;
            visit_pixels(roi, height, width, y, x, [&](int row, int column, T weight) {
                sum.add(weight, map[(static_cast<int64_t>(row) * width + column) * groups]);
            });
            const T points = roi.points();
#pragma unroll
            for (int i = 0; i < kCount; ++i) sum.value[i] /= points;
        }
        reinterpret_cast<Channels<T, kCount>*>(out)[index] = sum;
    }
}

template <typename T>
__global__ void backward_atomic(Pyramid<T> pyramid, const T* rois, const int64_t* level_of, int64_t count, Bins bins,
                                const T* grad) {
    const int64_t channels = pyramid.channels;
    MASKRCNN_FOR_EACH(index, count * bins.height * bins.width * channels) {
        const int64_t c = index % channels, bin = index / channels;
        const int x = static_cast<int>(bin % bins.width), y = static_cast<int>(bin / bins.width % bins.height);
        const int64_t k = bin / (static_cast<int64_t>(bins.width) * bins.height);
        const RoI<T> roi(rois + 5 * k, level_of[k], pyramid, bins);
        if (!roi.valid || !(roi.points() > T(0))) continue;
        const int height = pyramid.height[roi.level], width = pyramid.width[roi.level];
        T* map = pyramid.data[roi.level] + roi.image * height * width * channels + c;
        const T share = grad[index] / roi.points();
        visit_pixels(roi, height, width, y, x, [&](int row, int column, T weight) {
            atomicAdd(map + (static_cast<int64_t>(row) * width + column) * channels, weight * share);
        });
    }
}

// blockIdx.x: an image and a row of the map of `level`; a thread owns the channels threadIdx.x, + blockDim.x, ...
template <typename T>
__global__ void backward_by_row(Pyramid<T> pyramid, int level, const T* rois, const int64_t* level_of, int64_t count,
                                Bins bins, const T* grad) {
    const int height = pyramid.height[level], width = pyramid.width[level];
    const int64_t channels = pyramid.channels, image = blockIdx.x / height;
    const int mine = static_cast<int>(blockIdx.x % height);
    T* map = pyramid.data[level] + (image * height + mine) * width * channels;
    for (int64_t k = 0; k < count; ++k) {
        if (level_of[k] != level) continue;
        const RoI<T> roi(rois + 5 * k, level_of[k], pyramid, bins);
        if (!roi.valid || roi.image != image || !(roi.points() > T(0))) continue;
        for (int y = 0; y < bins.height; ++y) {
            int first, last;
            roi.rows.points_on_map(y, height, &first, &last);
            T row_weight = 0;
            for (int r = first; r < last; ++r) {
                const BilinearTap<T> row(roi.rows.position(y, r), height);
                if (row.low == mine) row_weight += row.weight_low;
                if (row.high == mine) row_weight += row.weight_high;
            }
            if (row_weight == T(0)) continue;
            for (int x = 0; x < bins.width; ++x) {
                const T* from = grad + ((k * bins.height + y) * bins.width + x) * channels;
                roi.columns.points_on_map(x, width, &first, &last);
                for (int c = first; c < last; ++c) {
                    const BilinearTap<T> column(roi.columns.position(x, c), width);
                    const T low = row_weight * column.weight_low / roi.points();
                    const T high = row_weight * column.weight_high / roi.points();
                    for (int64_t channel = threadIdx.x; channel < channels; channel += blockDim.x) {
                        map[column.low * channels + channel] += low * from[channel];
                        map[column.high * channels + channel] += high * from[channel];
                    }
                }
            }
        }
    }
}

template <typename T>
Pyramid<T> make_pyramid(const std::vector<Tensor>& maps, const std::vector<double>& scales) {
    Pyramid<T> pyramid = {};
    pyramid.levels = static_cast<int64_t>(maps.size());
    pyramid.batch = maps[0].size(0);
    pyramid.channels = maps[0].size(3);
    for (size_t l = 0; l < maps.size(); ++l) {
        pyramid.data[l] = const_cast<T*>(static_cast<const T*>(maps[l].const_data_ptr()));
        pyramid.height[l] = static_cast<int>(maps[l].size(1));
        pyramid.width[l] = static_cast<int>(maps[l].size(2));
        pyramid.scale[l] = static_cast<T>(scales[l]);
    }
    return pyramid;
}

template <typename T>
void run_forward(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& level,
                 const std::vector<double>& scales, const Bins& bins, Tensor& out) {
    constexpr int kVector = 16 / sizeof(T);
    const Launch launch(rois);
    const Pyramid<T> pyramid = make_pyramid<T>(features, scales);
    bool wide = pyramid.channels % kVector == 0;
    for (const Tensor& map : features) wide = wide && reinterpret_cast<uintptr_t>(map.const_data_ptr()) % 16 == 0;
    const auto kernel = wide ? forward<T, kVector> : forward<T, 1>;
    const int64_t threads = out.numel() / (wide ? kVector : 1);
    kernel<<<Launch::blocks(threads), kThreads, 0, launch.stream()>>>(
        pyramid, static_cast<const T*>(rois.const_data_ptr()), static_cast<const int64_t*>(level.const_data_ptr()),
        rois.size(0), bins, static_cast<T*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void run_backward(const Tensor& grad, const Tensor& rois, const Tensor& level, const std::vector<double>& scales,
                  const Bins& bins, bool deterministic, std::vector<Tensor>& out) {
    const Launch launch(rois);
    const Pyramid<T> pyramid = make_pyramid<T>(out, scales);
    const auto* roi = static_cast<const T*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    const auto* gradient = static_cast<const T*>(grad.const_data_ptr());
    if (!deterministic) {
        backward_atomic<T><<<Launch::blocks(grad.numel()), kThreads, 0, launch.stream()>>>(
            pyramid, roi, level_of, rois.size(0), bins, gradient);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        return;
    }
    for (int l = 0; l < static_cast<int>(out.size()); ++l) {
        const auto rows = static_cast<unsigned>(pyramid.batch * pyramid.height[l]);
        backward_by_row<T>
            <<<rows, kThreads, 0, launch.stream()>>>(pyramid, l, roi, level_of, rois.size(0), bins, gradient);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
}

Tensor roi_align(std::vector<Tensor> features, const Tensor& rois, const Tensor& level, std::vector<double> scales,
                 int64_t size_h, int64_t size_w, int64_t sampling_ratio, bool aligned) {
    check_roi_align(features, rois, level, scales.size(), size_h, size_w, sampling_ratio);
    STD_TORCH_CHECK(features.size() <= kMostLevels, "features: more than ", kMostLevels, " levels");
    Tensor out = torch::stable::new_empty(rois, {rois.size(0), size_h, size_w, features[0].size(3)});
    if (out.numel() == 0) return out;
    const Bins bins{static_cast<int>(size_h), static_cast<int>(size_w), static_cast<int>(sampling_ratio), aligned};
    const auto run = rois.scalar_type() == ScalarType::Double ? run_forward<double> : run_forward<float>;
    run(features, rois, level, scales, bins, out);
    return out;
}

std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level,
                                       std::vector<double> scales, int64_t batch, std::vector<int64_t> heights,
                                       std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned,
                                       bool deterministic) {
    check_roi_align_backward(grad, rois, level, scales.size(), heights, widths);
    STD_TORCH_CHECK(scales.size() <= kMostLevels, "features: more than ", kMostLevels, " levels");
    std::vector<Tensor> out;
    for (size_t l = 0; l < scales.size(); ++l) {
        out.push_back(torch::stable::new_zeros(grad, {batch, heights[l], widths[l], grad.size(3)}));
    }
    if (grad.numel() == 0 || batch == 0) return out;
    const Bins bins{static_cast<int>(grad.size(1)), static_cast<int>(grad.size(2)), static_cast<int>(sampling_ratio),
                    aligned};
    const auto run = grad.scalar_type() == ScalarType::Double ? run_backward<double> : run_backward<float>;
    run(grad, rois, level, scales, bins, deterministic, out);
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) {
    m.impl("roi_align", TORCH_BOX(&maskrcnn::roi_align));
    m.impl("roi_align_backward", TORCH_BOX(&maskrcnn::roi_align_backward));
}

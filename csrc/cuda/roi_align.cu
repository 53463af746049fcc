// RoIAlign over the levels of a pyramid, forward and backward, channels last.
//
// Forward: one thread per 16 bytes of channels of one bin; the threads of a warp read and write neighbouring channels.
// Backward: a thread adds its channels of one bin atomically to the pixels; or, in the deterministic mode, a block owns
// a row of a map and visits the RoIs over it in order, so that every sum is taken in the same order each time.
//
// 16-bit maps are read and written as such, but sums and coordinates are float32: Pixel is the element type of a map, T
// the type of the arithmetic. The backward pass sums in maps of T, which are converted to Pixel at the end.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "channels.cuh"
#include "launch.cuh"

namespace maskrcnn {
namespace {

constexpr int kMostLevels = 8;

// The maps [B, height, width, C] of the pyramid, as a kernel's argument.
template <typename Pixel, typename T>
struct Pyramid {
    Pixel* data[kMostLevels];
    int height[kMostLevels], width[kMostLevels];
    T scale[kMostLevels];
    int64_t levels, batch, channels;
};

struct Bins {
    int height, width, sampling_ratio;
    bool aligned;
};

// One RoI on its map. `valid` is false where the image or the level is out of range: the host cannot check without
// synchronizing.
template <typename T>
struct RoI {
    bool valid;
    int64_t level, image;
    RoIAxis<T> rows, columns;

    template <typename Pixel>
    __device__ RoI(const T* roi, int64_t of_level, const Pyramid<Pixel, T>& pyramid, const Bins& bins)
        : valid(of_level >= 0 && of_level < pyramid.levels && roi[0] >= T(0) && roi[0] < T(pyramid.batch)),
          level(valid ? of_level : 0),
          image(valid ? static_cast<int64_t>(roi[0]) : 0),
          rows(roi[2], roi[4], pyramid.scale[level], bins.height, bins.sampling_ratio, bins.aligned),
          columns(roi[1], roi[3], pyramid.scale[level], bins.width, bins.sampling_ratio, bins.aligned) {}

    __device__ T points() const { return T(rows.grid) * T(columns.grid); }
};

// Calls visit(row, column, weight) for the four pixels of every sampling point of a bin that is inside the map.
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

template <int kCount, typename Pixel, typename T>
__global__ void forward(Pyramid<const Pixel, T> pyramid, const T* rois, const int64_t* level_of, int64_t count,
                        Bins bins, Pixel* out) {
    const int64_t groups = pyramid.channels / kCount;
    MASKRCNN_FOR_EACH(index, count * bins.height * bins.width * groups) {
        const int64_t c = index % groups, bin = index / groups;
        const int x = static_cast<int>(bin % bins.width), y = static_cast<int>(bin / bins.width % bins.height);
        const int64_t k = bin / (static_cast<int64_t>(bins.width) * bins.height);
        const RoI<T> roi(rois + 5 * k, level_of[k], pyramid, bins);
        Channels<Pixel, kCount> mean = {};
        if (roi.valid && roi.points() > T(0)) {
            const int height = pyramid.height[roi.level], width = pyramid.width[roi.level];
            const auto* map = reinterpret_cast<const Channels<Pixel, kCount>*>(pyramid.data[roi.level]) +
                              roi.image * height * width * groups + c;
            Sums<T, kCount> sums;
            visit_pixels(roi, height, width, y, x, [&](int row, int column, T weight) {
                sums.add(weight, map[(static_cast<int64_t>(row) * width + column) * groups]);
            });
            mean = sums.template over<Pixel>(roi.points());
        }
        reinterpret_cast<Channels<Pixel, kCount>*>(out)[index] = mean;
    }
}

template <int kCount, typename Pixel, typename T>
__global__ void backward_atomic(Pyramid<T, T> pyramid, const T* rois, const int64_t* level_of, int64_t count, Bins bins,
                                const Pixel* grad) {
    const int64_t groups = pyramid.channels / kCount;
    MASKRCNN_FOR_EACH(index, count * bins.height * bins.width * groups) {
        const int64_t c = index % groups, bin = index / groups;
        const int x = static_cast<int>(bin % bins.width), y = static_cast<int>(bin / bins.width % bins.height);
        const int64_t k = bin / (static_cast<int64_t>(bins.width) * bins.height);
        const RoI<T> roi(rois + 5 * k, level_of[k], pyramid, bins);
        if (!roi.valid || !(roi.points() > T(0))) continue;
        const int height = pyramid.height[roi.level], width = pyramid.width[roi.level];
        auto* map =
            reinterpret_cast<Channels<T, kCount>*>(pyramid.data[roi.level]) + roi.image * height * width * groups + c;
        Sums<T, kCount> sum;
        sum.add(T(1), reinterpret_cast<const Channels<Pixel, kCount>*>(grad)[index]);
        const auto share = sum.template over<T>(roi.points());
        visit_pixels(roi, height, width, y, x, [&](int row, int column, T weight) {
            add_atomically(map + (static_cast<int64_t>(row) * width + column) * groups, weight, share);
        });
    }
}

// blockIdx.x: an image and a row of the map of `level`; a thread owns the channels threadIdx.x, + blockDim.x, ...
template <typename Pixel, typename T>
__global__ void backward_by_row(Pyramid<T, T> pyramid, int level, const T* rois, const int64_t* level_of, int64_t count,
                                Bins bins, const Pixel* grad) {
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
                const Pixel* from = grad + ((k * bins.height + y) * bins.width + x) * channels;
                roi.columns.points_on_map(x, width, &first, &last);
                for (int c = first; c < last; ++c) {
                    const BilinearTap<T> column(roi.columns.position(x, c), width);
                    if (column.weight_low + column.weight_high == T(0)) continue;  // off the map, whatever the gradient
                    const T low = row_weight * column.weight_low / roi.points();
                    const T high = row_weight * column.weight_high / roi.points();
                    for (int64_t channel = threadIdx.x; channel < channels; channel += blockDim.x) {
                        const T whole = static_cast<T>(from[channel]);
                        map[column.low * channels + channel] += low * whole;
                        map[column.high * channels + channel] += high * whole;
                    }
                }
            }
        }
    }
}

// Pixel is const if the maps are only read.
template <typename Pixel, typename T>
Pyramid<Pixel, T> make_pyramid(const std::vector<Tensor>& maps, const std::vector<double>& scales) {
    Pyramid<Pixel, T> pyramid = {};
    pyramid.levels = static_cast<int64_t>(maps.size());
    pyramid.batch = maps[0].size(0);
    pyramid.channels = maps[0].size(3);
    for (size_t l = 0; l < maps.size(); ++l) {
        pyramid.data[l] = static_cast<Pixel*>(const_cast<void*>(maps[l].const_data_ptr()));
        pyramid.height[l] = static_cast<int>(maps[l].size(1));
        pyramid.width[l] = static_cast<int>(maps[l].size(2));
        pyramid.scale[l] = static_cast<T>(scales[l]);
    }
    return pyramid;
}

// Whether these tensors' channels can be loaded and stored as groups of kCount.
template <typename Pixel, int kCount>
bool fit(const std::vector<Tensor>& tensors) {
    return std::all_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
        const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
        return tensor.size(3) % kCount == 0 && address % alignof(Channels<Pixel, kCount>) == 0;
    });
}

template <typename Pixel, typename T>
void run_forward(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& level,
                 const std::vector<double>& scales, const Bins& bins, Tensor& out) {
    constexpr int kVector = 16 / sizeof(Pixel);
    const Launch launch(rois);
    const bool wide = fit<Pixel, kVector>(features);
    const auto kernel = wide ? forward<kVector, Pixel, T> : forward<1, Pixel, T>;
    const int64_t threads = out.numel() / (wide ? kVector : 1);
    kernel<<<Launch::blocks(threads), kThreads, 0, launch.stream()>>>(
        make_pyramid<const Pixel, T>(features, scales), static_cast<const T*>(rois.const_data_ptr()),
        static_cast<const int64_t*>(level.const_data_ptr()), rois.size(0), bins,
        static_cast<Pixel*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// sums: maps of T.
template <typename Pixel, typename T>
void run_backward(const Tensor& grad, const Tensor& rois, const Tensor& level, const std::vector<double>& scales,
                  const Bins& bins, bool deterministic, const std::vector<Tensor>& sums) {
    const Launch launch(rois);
    const auto pyramid = make_pyramid<T, T>(sums, scales);
    const auto* roi = static_cast<const T*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    const auto* gradient = static_cast<const Pixel*>(grad.const_data_ptr());
    if (!deterministic) {
        constexpr int kVector = std::is_same_v<T, float> ? 4 : 1;
        const bool wide = Launch::has_wide_atomics() && fit<Pixel, kVector>({grad}) && fit<T, kVector>(sums);
        const auto kernel = wide ? backward_atomic<kVector, Pixel, T> : backward_atomic<1, Pixel, T>;
        const int64_t threads = grad.numel() / (wide ? kVector : 1);
        kernel<<<Launch::blocks(threads), kThreads, 0, launch.stream()>>>(pyramid, roi, level_of, rois.size(0), bins,
                                                                          gradient);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        return;
    }
    for (int l = 0; l < static_cast<int>(sums.size()); ++l) {
        const auto rows = static_cast<unsigned>(pyramid.batch * pyramid.height[l]);
        backward_by_row<Pixel, T>
            <<<rows, kThreads, 0, launch.stream()>>>(pyramid, l, roi, level_of, rois.size(0), bins, gradient);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
}

// Calls run(Pixel(), T()) for maps of this type.
template <typename Run>
void with_types(ScalarType maps, const Run& run) {
    switch (maps) {
        case ScalarType::Half:
            return run(c10::Half(), float());
        case ScalarType::BFloat16:
            return run(c10::BFloat16(), float());
        case ScalarType::Double:
            return run(double(), double());
        default:
            return run(float(), float());
    }
}

Tensor roi_align(std::vector<Tensor> features, const Tensor& rois, const Tensor& level, std::vector<double> scales,
                 int64_t size_h, int64_t size_w, int64_t sampling_ratio, bool aligned) {
    check_roi_align(features, rois, level, scales.size(), size_h, size_w, sampling_ratio);
    STD_TORCH_CHECK(features.size() <= kMostLevels, "features: more than ", kMostLevels, " levels");
    Tensor out = torch::stable::new_empty(features[0], {rois.size(0), size_h, size_w, features[0].size(3)});
    if (out.numel() == 0) return out;
    const Bins bins{static_cast<int>(size_h), static_cast<int>(size_w), static_cast<int>(sampling_ratio), aligned};
    with_types(features[0].scalar_type(), [&](auto pixel, auto t) {
        run_forward<decltype(pixel), decltype(t)>(features, rois, level, scales, bins, out);
    });
    return out;
}

std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level,
                                       std::vector<double> scales, int64_t batch, std::vector<int64_t> heights,
                                       std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned,
                                       bool deterministic) {
    check_roi_align_backward(grad, rois, level, scales.size(), heights, widths, sampling_ratio);
    STD_TORCH_CHECK(scales.size() <= kMostLevels, "features: more than ", kMostLevels, " levels");
    std::vector<Tensor> maps;
    for (size_t l = 0; l < scales.size(); ++l) {
        maps.push_back(
            torch::stable::new_zeros(grad, {batch, heights[l], widths[l], grad.size(3)}, rois.scalar_type()));
    }
    if (grad.numel() > 0 && batch > 0) {
        const Bins bins{static_cast<int>(grad.size(1)), static_cast<int>(grad.size(2)),
                        static_cast<int>(sampling_ratio), aligned};
        with_types(grad.scalar_type(), [&](auto pixel, auto t) {
            run_backward<decltype(pixel), decltype(t)>(grad, rois, level, scales, bins, deterministic, maps);
        });
    }
    for (Tensor& map : maps) map = torch::stable::to(map, grad.scalar_type());  // no copy if it has that dtype
    return maps;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) {
    m.impl("roi_align", TORCH_BOX(&maskrcnn::roi_align));
    m.impl("roi_align_backward", TORCH_BOX(&maskrcnn::roi_align_backward));
}

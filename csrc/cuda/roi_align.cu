// RoIAlign over the levels of a pyramid, channels last; see roi_pyramid.cuh.
#include <vector>

#include "../checks.h"
#include "roi_pyramid.cuh"

namespace maskrcnn {
namespace {

// blockIdx.x: the RoI. A thread walks down one column of bins, with one vector of channels: rows of pixels are
// interpolated along x, each once, and then along y. blockIdx.y: which of the columns and vectors.
template <int kCount, typename Pixel, typename T>
__global__ void __launch_bounds__(kThreads)
    forward(Pyramid<const Pixel, T> pyramid, const T* rois, const int64_t* level_of, BinGrid bins, Pixel* out) {
    using Sums = ChannelSums<T, kCount>;
    using Vector = ChannelVector<Pixel, kCount>;
    __shared__ AxisTaps<T> rows;
    __shared__ AxisTaps<T> columns;
    const int vectors = pyramid.channels / kCount;
    const int64_t begin = static_cast<int64_t>(blockIdx.y) * blockDim.x, item = begin + threadIdx.x;
    const int first_x = static_cast<int>(begin / vectors);
    const int x = static_cast<int>(item / vectors), c = static_cast<int>(item % vectors);
    const int last_x = min(static_cast<int>((begin + blockDim.x - 1) / vectors) + 1, bins.width);  // of the block
    const RoI<T> roi(rois + 5 * static_cast<int64_t>(blockIdx.x), level_of[blockIdx.x], pyramid);
    const int height = pyramid.height[roi.level], width = pyramid.width[roi.level], row_step = width * vectors;
    if (threadIdx.x == 0) {
        const T scale = pyramid.scale[roi.level];
        rows.axis = roi.rows(scale, bins), rows.size = height, rows.step = 1, rows.window = -1;
        columns.axis = roi.columns(scale, bins), columns.size = width,
        columns.step = vectors * static_cast<int>(sizeof(Vector)), columns.window = -1;
    }
    __syncthreads();
    const auto* map =
        reinterpret_cast<const Vector*>(pyramid.data[roi.level]) + roi.image * height * width * vectors + c;
    Vector* to = reinterpret_cast<Vector*>(out) +
                 (static_cast<int64_t>(blockIdx.x) * bins.height * bins.width + x) * vectors + c;
    LastLines<Sums> lines;
    for (int y = 0; y < bins.height; ++y, to += static_cast<int64_t>(bins.width) * vectors) {
        const int tile = y / kTile * kTile;
        Sums sums;
        for (int r = 0; roi.valid && (r == 0 || rows.more); ++r) {
            for (int w = 0; w == 0 || columns.more; ++w) {
                if (!rows.holds(tile, r) || !columns.holds(first_x, w)) {
                    __syncthreads();
                    if (threadIdx.x == 0) {
                        rows.begin(tile, min(kTile, bins.height - tile), r);
                        columns.begin(first_x, last_x - first_x, w);
                    }
                    __syncthreads();
                    rows.fill(threadIdx.x);
                    columns.fill(blockDim.x - 1 - threadIdx.x);  // by other warps
                    __syncthreads();
                    lines.forget();
                }
                if (x >= last_x) continue;
                const Tap<T>* of_row = rows.of_bin(y - tile);
                const Tap<T>* of_column = columns.of_bin(x - first_x);
                const int column_taps = columns.count[x - first_x];
                for (int i = 0; i < rows.count[y - tile]; ++i) {
                    const Tap<T> row = of_row[i];
                    lines.with(row.place, [&](Sums& line, int& of) {
                        if (of != row.place) {
                            of = row.place;
                            line = Sums();
                            const auto* pixels =
                                reinterpret_cast<const char*>(map + static_cast<int64_t>(row.place) * row_step);
#pragma unroll 2
                            for (int j = 0; j < column_taps; ++j) {
                                const Tap<T> column = of_column[j];
                                line.add(column.weight, *reinterpret_cast<const Vector*>(pixels + column.place));
                            }
                        }
                        sums.add(row.weight, line);
                    });
                }
            }
        }
        if (x < last_x) *to = sums.template rounded<Pixel>();
    }
}

template <typename Pixel, typename T>
void run_forward(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& level,
                 const std::vector<double>& scales, const BinGrid& bins, Tensor& out) {
    constexpr int kVector = 16 / sizeof(Pixel);
    const Launch launch(rois);
    const bool wide = fit<Pixel, kVector>(features);
    const auto kernel = wide ? forward<kVector, Pixel, T> : forward<1, Pixel, T>;
    const Shape shape(rois.size(0), bins.width * out.size(3) / (wide ? kVector : 1));
    kernel<<<shape.grid, shape.block, 0, launch.stream()>>>(
        make_pyramid<const Pixel, T>(features, scales), static_cast<const T*>(rois.const_data_ptr()),
        static_cast<const int64_t*>(level.const_data_ptr()), bins, static_cast<Pixel*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor roi_align(std::vector<Tensor> features, const Tensor& rois, const Tensor& level, std::vector<double> scales,
                 int64_t size_h, int64_t size_w, int64_t sampling_ratio, bool aligned) {
    check_roi_align(features, rois, level, scales.size(), size_h, size_w, sampling_ratio);
    STD_TORCH_CHECK(features.size() <= kMostLevels, "features: more than ", kMostLevels, " levels");
    for (const Tensor& map : features) check_row_of_pixels(map.size(2), map.size(3));
    Tensor out = torch::stable::new_empty(features[0], {rois.size(0), size_h, size_w, features[0].size(3)});
    if (out.numel() == 0) return out;
    const BinGrid bins{static_cast<int>(size_h), static_cast<int>(size_w), static_cast<int>(sampling_ratio), aligned};
    with_types(features[0].scalar_type(), [&](auto pixel, auto t) {
        run_forward<decltype(pixel), decltype(t)>(features, rois, level, scales, bins, out);
    });
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("roi_align", TORCH_BOX(&maskrcnn::roi_align)); }

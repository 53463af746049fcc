// The gradient of RoIAlign over the levels of a pyramid, channels last; see roi_pyramid.cuh. Each pixel of a RoI gets
// its sum over all bins, atomically; or, in the deterministic mode, a block owns a row of a map and visits the RoIs
// over it in order. Sums are in maps of T, which are converted to Pixel at the end.
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "roi_pyramid.cuh"

namespace maskrcnn {
namespace {

// The gradient of a row of bins, taken back to the pixel of this tap.
template <int kCount, typename Pixel, typename T>
__device__ ChannelSums<T, kCount> gather_bins(const AxisTaps<T>& columns, const PixelLinks& links, int tap,
                                              const ChannelVector<Pixel, kCount>* bin, int vectors) {
    ChannelSums<T, kCount> sums;
    for (; tap >= 0; tap = links.next[tap], bin += vectors) sums.add(columns.taps[tap].weight, *bin);
    return sums;
}

// blockIdx.x: the RoI. A thread walks down one column of pixels, with one vector of channels, and adds the sum of all
// bins to each pixel. blockIdx.y: which of the vectors.
template <int kCount, typename Pixel, typename T>
__global__ void __launch_bounds__(kThreads)
    backward_atomic(Pyramid<T, T> pyramid, const T* rois, const int64_t* level_of, BinGrid bins, const Pixel* grad) {
    using Sums = ChannelSums<T, kCount>;
    __shared__ AxisTaps<T> rows;
    __shared__ AxisTaps<T> columns;
    __shared__ PixelLinks links;
    const int vectors = pyramid.channels / kCount, parts = gridDim.y;
    const int most = (vectors + parts - 1) / parts, begin = static_cast<int>(blockIdx.y) * most;
    const int mine = min(most, vectors - begin);
    const RoI<T> roi(rois + 5 * static_cast<int64_t>(blockIdx.x), level_of[blockIdx.x], pyramid);
    if (!roi.valid || mine <= 0) return;
    const int height = pyramid.height[roi.level], width = pyramid.width[roi.level];
    const T scale = pyramid.scale[roi.level];
    auto* map =
        reinterpret_cast<ChannelVector<T, kCount>*>(pyramid.data[roi.level]) + roi.image * height * width * vectors;
    const int row_step = width * vectors;
    const auto* from = reinterpret_cast<const ChannelVector<Pixel, kCount>*>(grad) +
                       static_cast<int64_t>(blockIdx.x) * bins.height * bins.width * vectors;
    if (threadIdx.x == 0) {
        rows.axis = roi.rows(scale, bins), rows.size = height, rows.step = 1;
        columns.axis = roi.columns(scale, bins), columns.size = width, columns.step = vectors;
    }
    for (int y = 0, r = 0, x = 0, w = 0; y < bins.height;) {  // the windows of rows, and of columns for each
        __syncthreads();
        if (threadIdx.x == 0) {
            rows.begin(y, min(kTile, bins.height - y), r);
            columns.begin(x, min(kTile, bins.width - x), w);
            links.pixels = 0;
        }
        __syncthreads();
        rows.fill(threadIdx.x);
        columns.fill(blockDim.x - 1 - threadIdx.x);  // by other warps
        __syncthreads();
        links.connect(columns);
        __syncthreads();
        const unsigned items = static_cast<unsigned>(links.pixels) * mine;
        for (unsigned item = threadIdx.x; item < items; item += blockDim.x) {
            const int first = links.firsts[item / mine], c = begin + static_cast<int>(item % mine);
            auto* pixels = map + columns.taps[first].place + c;
            LastLines<Sums> lines;
            const auto flush = [&](const Sums& line, int row) {
                if (row != lines.kNone) add_atomically(pixels + static_cast<int64_t>(row) * row_step, line);
            };
            const auto* bin = from + (static_cast<int64_t>(y) * bins.width + x + first / columns.stride) * vectors + c;
            for (int i = 0; i < rows.bins; ++i, bin += static_cast<int64_t>(bins.width) * vectors) {
                if (rows.count[i] == 0) continue;
                const Sums sums = gather_bins(columns, links, first, bin, vectors);
                const Tap<T>* of_row = rows.of_bin(i);
                for (int j = 0; j < rows.count[i]; ++j) {
                    const Tap<T> row = of_row[j];
                    lines.with(row.place, [&](Sums& line, int& of) {
                        if (of != row.place) {
                            flush(line, of);
                            of = row.place;
                            line = Sums();
                        }
                        line.add(row.weight, sums);
                    });
                }
            }
            flush(lines.even, lines.even_row);
            flush(lines.odd, lines.odd_row);
        }
        // the next window
        if (columns.more) {
            ++w;
        } else if (w = 0, x += kTile; x >= bins.width) {
            x = 0;
            if (rows.more) {
                ++r;
            } else {
                r = 0, y += kTile;
            }
        }
    }
}

// Where a RoI may have pixels: rows first .. last of a map.
struct Extent {
    int level, first, last;
    int64_t image;
};

template <typename T>
__global__ void find_extents(Pyramid<T, T> pyramid, const T* rois, const int64_t* level_of, int64_t count, BinGrid bins,
                             Extent* extents) {
    MASKRCNN_FOR_EACH(k, count) {
        const RoI<T> roi(rois + 5 * k, level_of[k], pyramid);
        const RoIAxis<T> rows = roi.rows(pyramid.scale[roi.level], bins);
        const T end = rows.start + rows.bin * T(bins.height);
        const T margin = T(2) + T(1e-5) * (std::fabs(rows.start) + std::fabs(end));  // more than pixels and rounding
        const T low = std::fmin(rows.start, end) - margin, high = std::fmax(rows.start, end) + margin;
        const T most = T(pyramid.height[roi.level]);
        const bool empty = !roi.valid || !(low < most && high > T(0));
        extents[k] = {empty ? -1 : roi.level, static_cast<int>(std::fmax(low, T(0))),
                      static_cast<int>(std::fmin(high, most)), roi.image};
    }
}

// The weight of a row of pixels in a bin.
template <typename T>
__device__ T weight_of_row(const RoIAxis<T>& axis, int bin, int height, int row) {
    int first, last;
    axis.points_on_map(bin, height, &first, &last);
    T sum = 0;
    for (int point = first; point < last; ++point) {
        const BilinearTap<T> tap(axis.position(bin, point), height);
        if (tap.low == row) sum += tap.weight_low;
        if (tap.high == row) sum += tap.weight_high;
    }
    return axis.grid > 0 ? sum / T(axis.grid) : sum;
}

// A block owns one row of one map, blockIdx.x of all, and visits the RoIs over it in order, so that every sum is taken
// in the same order each time.
template <typename Pixel, typename T>
__global__ void __launch_bounds__(kThreads) backward_by_row(Pyramid<T, T> pyramid, const T* rois, const Extent* extents,
                                                            int64_t count, BinGrid bins, const Pixel* grad) {
    __shared__ AxisTaps<T> columns;
    __shared__ PixelLinks links;
    __shared__ T row_weight[kTile];
    __shared__ int hits[kThreads / kWarp][kWarp + 1];  // of each warp's RoIs, those over the row; then their number
    int64_t row = blockIdx.x;
    int level = 0;
    while (row >= pyramid.batch * pyramid.height[level]) row -= pyramid.batch * pyramid.height[level++];
    const int height = pyramid.height[level], width = pyramid.width[level];
    const int64_t image = row / height;
    const int mine = static_cast<int>(row % height), channels = pyramid.channels;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    T* map = pyramid.data[level] + row * width * channels;
    if (threadIdx.x == 0) columns.size = width, columns.step = channels;
    for (int64_t base = 0; base < count; base += kThreads) {
        const int64_t candidate = base + threadIdx.x;
        bool hit = false;
        if (candidate < count) {
            const Extent extent = extents[candidate];
            hit = extent.level == level && extent.image == image && extent.first <= mine && mine <= extent.last;
        }
        const unsigned bits = __ballot_sync(kAllLanes, hit);
        __syncthreads();
        if (hit) hits[warp][__popc(bits & ((1u << lane) - 1))] = threadIdx.x;
        if (lane == 0) hits[warp][kWarp] = __popc(bits);
        __syncthreads();
        for (int of_warp = 0, i = 0; of_warp < kThreads / kWarp;) {
            if (i >= hits[of_warp][kWarp]) {
                i = 0, ++of_warp;
                continue;
            }
            const int64_t k = base + hits[of_warp][i++];
            const RoI<T> roi(rois + 5 * k, level, pyramid);
            const RoIAxis<T> rows = roi.rows(pyramid.scale[level], bins);
            for (int y = 0, x = 0, w = 0; y < bins.height;) {  // tiles of rows, and the windows of columns for each
                const int tall = min(kTile, bins.height - y);
                __syncthreads();
                if (threadIdx.x == 0) {
                    columns.axis = roi.columns(pyramid.scale[level], bins);
                    columns.begin(x, min(kTile, bins.width - x), w);
                    links.pixels = 0;
                }
                bool reached = false;
                if (static_cast<int>(threadIdx.x) < tall) {
                    row_weight[threadIdx.x] = weight_of_row(rows, y + threadIdx.x, height, mine);
                    reached = row_weight[threadIdx.x] != T(0);
                }
                reached = __syncthreads_or(reached);
                columns.fill(threadIdx.x);
                __syncthreads();
                links.connect(columns);
                __syncthreads();
                const unsigned items = reached ? static_cast<unsigned>(links.pixels) * channels : 0;
                for (unsigned item = threadIdx.x; item < items; item += kThreads) {
                    const int first = links.firsts[item / channels], c = static_cast<int>(item % channels);
                    const int64_t column = x + first / columns.stride;
                    ChannelSums<T, 1> sums;
                    for (int bin = 0; bin < tall; ++bin) {
                        if (row_weight[bin] == T(0)) continue;
                        const auto* from = reinterpret_cast<const ChannelVector<Pixel, 1>*>(grad) +
                                           ((k * bins.height + y + bin) * bins.width + column) * channels + c;
                        sums.add(row_weight[bin], gather_bins(columns, links, first, from, channels));
                    }
                    map[columns.taps[first].place + c] += sums.value[0];
                }
                if (reached && columns.more) {
                    ++w;
                } else if (w = 0, x += kTile; x >= bins.width || !reached) {
                    x = 0, y += kTile;
                }
            }
        }
    }
}

// sums: maps of T.
template <typename Pixel, typename T>
void run_backward(const Tensor& grad, const Tensor& rois, const Tensor& level, const std::vector<double>& scales,
                  const BinGrid& bins, bool deterministic, const std::vector<Tensor>& sums) {
    const Launch launch(rois);
    const auto pyramid = make_pyramid<T, T>(sums, scales);
    const auto* roi = static_cast<const T*>(rois.const_data_ptr());
    const auto* level_of = static_cast<const int64_t*>(level.const_data_ptr());
    const auto* gradient = static_cast<const Pixel*>(grad.const_data_ptr());
    if (!deterministic) {
        constexpr int kVector = std::is_same_v<T, float> ? 4 : 1;
        const bool wide = Launch::has_wide_atomics() && fit<Pixel, kVector>({grad}) && fit<T, kVector>(sums);
        const auto kernel = wide ? backward_atomic<kVector, Pixel, T> : backward_atomic<1, Pixel, T>;
        Shape shape(rois.size(0), bins.width * grad.size(3) / (wide ? kVector : 1));
        // whole warps of vectors for each block
        shape.grid.y = std::clamp<unsigned>(grad.size(3) / (wide ? kVector : 1) / kWarp, 1, shape.grid.y);
        kernel<<<shape.grid, shape.block, 0, launch.stream()>>>(pyramid, roi, level_of, bins, gradient);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        return;
    }
    const int64_t count = rois.size(0);
    const Tensor buffer =
        torch::stable::new_empty(rois, {count * static_cast<int64_t>(sizeof(Extent))}, ScalarType::Byte);
    auto* extents = static_cast<Extent*>(buffer.mutable_data_ptr());
    find_extents<T>
        <<<Launch::blocks(count), kThreads, 0, launch.stream()>>>(pyramid, roi, level_of, count, bins, extents);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    int64_t rows = 0;
    for (const Tensor& map : sums) rows += map.size(0) * map.size(1);
    backward_by_row<Pixel, T>
        <<<static_cast<unsigned>(rows), kThreads, 0, launch.stream()>>>(pyramid, roi, extents, count, bins, gradient);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level,
                                       std::vector<double> scales, int64_t batch, std::vector<int64_t> heights,
                                       std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned,
                                       bool deterministic) {
    check_roi_align_backward(grad, rois, level, scales.size(), heights, widths, sampling_ratio);
    STD_TORCH_CHECK(scales.size() <= kMostLevels, "features: more than ", kMostLevels, " levels");
    for (const int64_t width : widths) check_row_of_pixels(width, grad.size(3));
    std::vector<Tensor> maps;
    for (size_t l = 0; l < scales.size(); ++l) {
        maps.push_back(
            torch::stable::new_zeros(grad, {batch, heights[l], widths[l], grad.size(3)}, rois.scalar_type()));
    }
    if (grad.numel() > 0 && batch > 0) {
        const BinGrid bins{static_cast<int>(grad.size(1)), static_cast<int>(grad.size(2)),
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

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("roi_align_backward", TORCH_BOX(&maskrcnn::roi_align_backward)); }

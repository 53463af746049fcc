// 3x3 convolution, stride 1, padding 1, channels last, and its gradients, by Winograd's algorithm (winograd.h).
//
// Tiles of 4x4 outputs are processed in groups that fit in the caches: they are transformed to 36 points, a matrix
// product over the channels is computed at each point, and the products are transformed back. Channels are stored in
// panels of 16, [panel][tile][16], which the products read and write sequentially.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../checks.h"
#include "huge_pages.h"
// from here on for one instruction set
#include "begin_set.h"
#include "simd.h"
#include "winograd.h"

namespace maskrcnn {
namespace MASKRCNN_SET {
namespace {

using namespace winograd;
using Vec = Simd<float>::Vec;
constexpr int kLanes = Simd<float>::kLanes, kPanel = 2 * kLanes;
constexpr int kRows = 6;                          // of a product: 12 sums and 2 + 1 factors fill 16 registers
constexpr int kTilesAThread = 48;                 // per group
constexpr int64_t kMostWork = int64_t{32} << 20;  // bytes of a group, however many threads there are
static_assert(kPanel == 16);

using AnyAddress = Simd<float>::AnyAddress;
MASKRCNN_INLINE Vec load(const float* from) { return *reinterpret_cast<const AnyAddress*>(from); }
MASKRCNN_INLINE void store(float* to, Vec value) { *reinterpret_cast<AnyAddress*>(to) = value; }

// A map [batch, height, width, channels] and the tiles of its outputs, numbered from `first` over all maps.
struct Map {
    float* data;
    int64_t height, width, tile_rows, tile_columns, first;
};

struct Maps {
    std::vector<Map> maps;
    int64_t channels, tiles = 0;

    Maps(const std::vector<Tensor>& tensors, int64_t channels_) : channels(channels_) {
        for (const Tensor& tensor : tensors) {
            const int64_t h = tensor.size(1), w = tensor.size(2);
            const int64_t rows = (h + kOut - 1) / kOut, columns = (w + kOut - 1) / kOut;
            // only read if the tensor is an argument
            auto* data = static_cast<float*>(const_cast<void*>(tensor.const_data_ptr()));
            maps.push_back({data, h, w, rows, columns, tiles});
            tiles += tensor.size(0) * rows * columns;
        }
    }
};

// A tile's pixels: those of a square of kSide, of which rows y1..y2-1 and columns x1..x2-1 are inside the map.
template <int kSide>
struct Window {
    float* corner;
    int64_t row_step;
    int y1, y2, x1, x2;

    MASKRCNN_INLINE Window(const Maps& maps, int64_t tile) {
        constexpr int kMargin = (kSide - kOut) / 2;
        const Map* map = &maps.maps.back();
        while (tile < map->first) --map;
        tile -= map->first;
        const int64_t column = tile % map->tile_columns, row = tile / map->tile_columns % map->tile_rows;
        const int64_t image = tile / map->tile_columns / map->tile_rows;
        const int64_t y = row * kOut - kMargin, x = column * kOut - kMargin;
        row_step = map->width * maps.channels;
        corner = map->data + (image * map->height + y) * row_step + x * maps.channels;
        y1 = static_cast<int>(std::max<int64_t>(0, -y)), x1 = static_cast<int>(std::max<int64_t>(0, -x));
        y2 = static_cast<int>(std::min<int64_t>(kSide, map->height - y));
        x2 = static_cast<int>(std::min<int64_t>(kSide, map->width - x));
    }

    MASKRCNN_INLINE void load_all(int64_t channels, int64_t c, Vec* to) const {
        if (y2 - y1 == kSide && x2 - x1 == kSide) {
#pragma GCC unroll 6
            for (int y = 0; y < kSide; ++y) {
#pragma GCC unroll 6
                for (int x = 0; x < kSide; ++x) to[y * kSide + x] = load(corner + y * row_step + x * channels + c);
            }
            return;
        }
        for (int i = 0; i < kSide * kSide; ++i) to[i] = Vec{};
        for (int y = y1; y < y2; ++y) {
            for (int x = x1; x < x2; ++x) to[y * kSide + x] = load(corner + y * row_step + x * channels + c);
        }
    }
};

// Transformed tiles of a group: at each of 36 points panels of 16 channels, [point][panel][tile][16].
struct Work {
    int64_t capacity, point_step;
    Tensor memory;
    float* data;

    // One more cache line per point: otherwise the same element of all points would be in the same cache set.
    Work(int64_t tiles, int64_t channels)
        : capacity(tiles),
          point_step(channels * tiles + kPanel),
          memory(torch::stable::empty({kPoints * point_step}, ScalarType::Float)),
          data(static_cast<float*>(memory.mutable_data_ptr())) {
        use_huge_pages(memory);
    }
    MASKRCNN_INLINE float* at(int64_t point, int64_t panel, int64_t tile) const {
        return data + point * point_step + (panel * capacity + tile) * kPanel;
    }
};

// Transforms tiles begin..end-1 of the group, which starts at tile `first`, to points.
template <typename T>
void to_points(const Maps& maps, const Work& work, int64_t first, int64_t begin, int64_t end) {
    constexpr int kSide = T::kFrom;
    Vec pixels[kSide * kSide], points[kPoints];
    for (int64_t t = begin; t < end; ++t) {
        const Window<kSide> window(maps, first + t);
        for (int64_t c = 0; c < maps.channels; c += kLanes) {
            window.load_all(maps.channels, c, pixels);
            transform<T>(pixels, points);
            float* to = work.at(0, c / kPanel, t) + c % kPanel;
            for (int i = 0; i < kPoints; ++i) store(to + i * work.point_step, points[i]);
        }
    }
}

// Transforms the products back to outputs.
void from_points(const Maps& maps, const Work& work, const float* bias, int64_t first, int64_t begin, int64_t end) {
    Vec pixels[kOut * kOut], points[kPoints];
    for (int64_t t = begin; t < end; ++t) {
        const Window<kOut> window(maps, first + t);
        for (int64_t c = 0; c < maps.channels; c += kLanes) {
            const float* from = work.at(0, c / kPanel, t) + c % kPanel;
            for (int i = 0; i < kPoints; ++i) points[i] = load(from + i * work.point_step);
            transform<Output>(points, pixels);
            const Vec shift = bias ? load(bias + c) : Vec{};
            for (int y = 0; y < window.y2; ++y) {
                for (int x = 0; x < window.x2; ++x) {
                    store(window.corner + y * window.row_step + x * maps.channels + c, pixels[y * kOut + x] + shift);
                }
            }
        }
    }
}

// A matrix product's left factor: element (row, depth) at data + row * row_step + (depth / kPanel) * block_step +
// (depth % kPanel) * step.
struct Left {
    const float* data;
    int64_t row_step, step, block_step;
};

// to [kCount][16] = (or +=) left [kCount, depth] x right [depth][16].
template <int kCount, bool kAdd>
MASKRCNN_INLINE void multiply_rows(const Left& left, const float* right, int64_t depth, float* to) {
    Vec sums[kCount][2];
#pragma GCC unroll 6
    for (int r = 0; r < kCount; ++r) {
        sums[r][0] = kAdd ? load(to + r * kPanel) : Vec{};
        sums[r][1] = kAdd ? load(to + r * kPanel + kLanes) : Vec{};
    }
    for (int64_t start = 0; start < depth; start += kPanel) {
        const float* from = left.data + start / kPanel * left.block_step;
        const int64_t count = std::min<int64_t>(kPanel, depth - start);
        for (int64_t d = 0; d < count; ++d, right += kPanel, from += left.step) {
            const Vec low = load(right), high = load(right + kLanes);
#pragma GCC unroll 6
            for (int r = 0; r < kCount; ++r) {
                sums[r][0] += from[r * left.row_step] * low;
                sums[r][1] += from[r * left.row_step] * high;
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kCount; ++r) {
        store(to + r * kPanel, sums[r][0]);
        store(to + r * kPanel + kLanes, sums[r][1]);
    }
}

template <bool kAdd>
void multiply(Left left, const float* right, int64_t rows, int64_t depth, float* to) {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows, left.data += kRows * left.row_step, to += kRows * kPanel) {
        multiply_rows<kRows, kAdd>(left, right, depth, to);
    }
    switch (rows - row) {
        case 1:
            return multiply_rows<1, kAdd>(left, right, depth, to);
        case 2:
            return multiply_rows<2, kAdd>(left, right, depth, to);
        case 3:
            return multiply_rows<3, kAdd>(left, right, depth, to);
        case 4:
            return multiply_rows<4, kAdd>(left, right, depth, to);
        case 5:
            return multiply_rows<5, kAdd>(left, right, depth, to);
        default:
            return;
    }
}

// Weights [K, C, 3, 3] of any layout as a convolution from C to K channels uses them, or, transposed, its adjoint from
// K to C channels: the taps turned by 180 degrees.
struct Weights {
    float* data;
    int64_t out_step, in_step, row_step, column_step;

    Weights(const Tensor& w, bool transposed)
        : data(static_cast<float*>(const_cast<void*>(w.const_data_ptr()))),
          out_step(w.stride(transposed ? 1 : 0)),
          in_step(w.stride(transposed ? 0 : 1)),
          row_step(w.stride(2)),
          column_step(w.stride(3)) {
        if (transposed) {
            data += 2 * row_step + 2 * column_step;
            row_step = -row_step, column_step = -column_step;
        }
    }
};

// One panel of outputs at all points, [point][in][16] with the points `point_step` apart.
void weights_to_points(const Weights& weights, int64_t panel, int64_t inputs, float* to, int64_t point_step) {
    float taps[kTap * kTap][kPanel];
    Vec values[kTap * kTap], points[kPoints];
    for (int64_t in = 0; in < inputs; ++in, to += kPanel) {
        for (int k = 0; k < kPanel; ++k) {
            const float* from = weights.data + (panel * kPanel + k) * weights.out_step + in * weights.in_step;
            for (int i = 0; i < kTap * kTap; ++i) {
                taps[i][k] = from[i / kTap * weights.row_step + i % kTap * weights.column_step];
            }
        }
        for (int lane = 0; lane < kPanel; lane += kLanes) {
            for (int i = 0; i < kTap * kTap; ++i) values[i] = load(taps[i] + lane);
            transform<Weight>(values, points);
            for (int i = 0; i < kPoints; ++i) store(to + i * point_step + lane, points[i]);
        }
    }
}

// Sums [point][16 inputs][16 outputs], the points `point_step` apart, into the gradient [K, 3, 3, C] at (k, c).
void points_to_gradient(const float* sums, int64_t point_step, float* gradient, int64_t inputs) {
    Vec points[kPoints], values[kTap * kTap];
    for (int in = 0; in < kPanel; ++in, sums += kPanel, ++gradient) {
        for (int lane = 0; lane < kPanel; lane += kLanes) {
            for (int i = 0; i < kPoints; ++i) points[i] = load(sums + i * point_step + lane);
            transform<WeightGradient>(points, values);
            for (int k = 0; k < kLanes; ++k) {
                for (int i = 0; i < kTap * kTap; ++i) {
                    gradient[((lane + k) * kTap * kTap + i) * inputs] = values[i][k];
                }
            }
        }
    }
}

// The number of tiles in a group, with `channels` inputs and outputs together. More of them for more threads make steps
// of the same length; from about 8 threads on, steps become shorter instead.
int64_t tiles_in_work(int64_t tiles, int64_t channels) {
    constexpr int64_t kBytes = int64_t{kPoints} * sizeof(float) * kTilesAThread;
    const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t shares = std::max<int64_t>(1, std::min(threads, kMostWork / (kBytes * channels)));
    return std::max<int64_t>(1, std::min(tiles, kTilesAThread * shares));
}

template <typename Run>
void parallel(int64_t count, const Run& run) {
    torch::stable::parallel_for(0, count, 1, run);
}

}  // namespace

std::vector<Tensor> conv3x3(const std::vector<Tensor>& maps, const Tensor& weight, const std::optional<Tensor>& bias,
                            bool transposed) {
    check_conv3x3(maps, weight, bias, transposed);
    const int64_t inputs = weight.size(transposed ? 0 : 1), outputs = weight.size(transposed ? 1 : 0);
    std::vector<Tensor> results;
    for (const Tensor& map : maps) {
        results.push_back(torch::stable::empty({map.size(0), map.size(1), map.size(2), outputs}, ScalarType::Float));
        use_huge_pages(results.back());
    }
    const Maps from(maps, inputs), to(results, outputs);
    if (from.tiles == 0) return results;
    const float* shift = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
    const int64_t panels = outputs / kPanel, panel_size = inputs * kPanel, point_step = panels * panel_size + kPanel;
    const Tensor factors_memory = torch::stable::empty({kPoints * point_step}, ScalarType::Float);
    use_huge_pages(factors_memory);
    auto* factors = static_cast<float*>(factors_memory.mutable_data_ptr());
    const Weights weights(weight, transposed);
    parallel(panels, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            weights_to_points(weights, p, inputs, factors + p * panel_size, point_step);
        }
    });
    const int64_t capacity = tiles_in_work(from.tiles, inputs + outputs);
    const Work work(capacity, inputs), products(capacity, outputs);
    for (int64_t first = 0; first < from.tiles; first += capacity) {
        const int64_t count = std::min(capacity, from.tiles - first);
        parallel(count, [&](int64_t begin, int64_t end) { to_points<Input>(from, work, first, begin, end); });
        parallel(kPoints * panels, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t point = i / panels, panel = i % panels;
                const Left left = {work.at(point, 0, 0), kPanel, 1, capacity * kPanel};
                multiply<false>(left, factors + point * point_step + panel * panel_size, count, inputs,
                                products.at(point, panel, 0));
            }
        });
        parallel(count, [&](int64_t begin, int64_t end) { from_points(to, products, shift, first, begin, end); });
    }
    return results;
}

Tensor conv3x3_weight_gradient(const std::vector<Tensor>& maps, const std::vector<Tensor>& grads) {
    check_conv3x3_weight_gradient(maps, grads);
    const int64_t inputs = maps[0].size(3), outputs = grads[0].size(3);
    Tensor result = torch::stable::empty({outputs, kTap, kTap, inputs}, ScalarType::Float);
    const Maps from(maps, inputs), to(grads, outputs);
    const int64_t in_panels = inputs / kPanel, out_panels = outputs / kPanel;
    const int64_t block = kPanel * kPanel, point_step = in_panels * out_panels * block + kPanel;
    Tensor sums_memory = torch::stable::empty({kPoints * point_step}, ScalarType::Float);
    use_huge_pages(sums_memory);
    auto* sums = static_cast<float*>(sums_memory.mutable_data_ptr());
    const int64_t capacity = tiles_in_work(from.tiles, inputs + outputs);
    const Work work(capacity, inputs), gradients(capacity, outputs);
    // at least one round, which writes the sums
    for (int64_t first = 0; first == 0 || first < from.tiles; first += capacity) {
        const int64_t count = std::min(capacity, from.tiles - first);
        parallel(count, [&](int64_t begin, int64_t end) {
            to_points<Input>(from, work, first, begin, end);
            to_points<OutputGradient>(to, gradients, first, begin, end);
        });
        parallel(kPoints * in_panels, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t point = i / in_panels, panel = i % in_panels;
                const Left left = {work.at(point, panel, 0), 1, kPanel, kPanel * kPanel};
                float* to_sums = sums + point * point_step + panel * out_panels * block;
                for (int64_t p = 0; p < out_panels; ++p, to_sums += block) {
                    const auto run = first == 0 ? multiply<false> : multiply<true>;
                    run(left, gradients.at(point, p, 0), kPanel, count, to_sums);
                }
            }
        });
    }
    auto* gradient = static_cast<float*>(result.mutable_data_ptr());
    parallel(in_panels * out_panels, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t in = i / out_panels * kPanel, out = i % out_panels * kPanel;
            points_to_gradient(sums + i * block, point_step, gradient + out * kTap * kTap * inputs + in, inputs);
        }
    });
    return result;
}

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

#include "end_set.h"

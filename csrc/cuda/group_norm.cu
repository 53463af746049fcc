// Group normalization, channels last, forward and backward.
//
// A block owns the pixels of one part of a map. Its threads load 16 bytes of channels each, neighbouring threads
// neighbouring channels, and keep their channels from pixel to pixel, so that what depends on the channel alone stays
// in registers. The first kernel computes sums over each part, the next ones those of each map, in a fixed order and
// without atomics, and the last one reads the maps again and writes the result. The host waits for none of them.
//
// Pixel is the element type of a map, T the type of the arithmetic: float32 over maps of 16 bits.
#include <cmath>
#include <initializer_list>
#include <optional>
#include <tuple>

#include "../checks.h"
#include "launch.cuh"

namespace maskrcnn {
namespace {

// Neighbouring channels, loaded and stored at once.
template <typename Pixel, int kCount>
struct alignas(sizeof(Pixel) * kCount) Pack {
    Pixel value[kCount];
};

// Maps [images, pixels, channels], and how they are divided into parts.
struct Shape {
    int64_t images, pixels;
    int channels, groups;

    Shape(const Tensor& maps, int64_t groups_)
        : images(maps.size(0)),
          pixels(maps.size(1) * maps.size(2)),
          channels(static_cast<int>(maps.size(3))),
          groups(static_cast<int>(groups_)) {}

    __host__ __device__ int64_t part() const { return channels < (1 << 15) ? (1 << 15) / channels : 1; }  // pixels
    __host__ __device__ int64_t parts() const { return (pixels + part() - 1) / part(); }
    __host__ __device__ int in_group() const { return channels / groups; }
    __host__ __device__ int64_t group_size() const { return pixels * in_group(); }
    // Number of values of kCount channels that one block's threads own.
    template <int kCount>
    __host__ __device__ int tiles() const {
        return (channels / kCount + kThreads - 1) / kThreads;
    }
    template <int kCount>
    unsigned blocks() const {
        return static_cast<unsigned>(images * parts() * tiles<kCount>());
    }
};

// What a thread owns: channels c .. c + kCount - 1 of the pixels first, first + step, ... below `last` of a part.
template <int kCount>
struct Share {
    int64_t image, part, first, last;
    int c, step, vectors, row;

    __device__ explicit Share(const Shape& shape) {
        const int tiles = shape.tiles<kCount>(), tile = static_cast<int>(blockIdx.x % tiles);
        const int64_t of_all = blockIdx.x / tiles;
        image = of_all / shape.parts();
        part = of_all % shape.parts();
        vectors = min(kThreads, shape.channels / kCount - tile * kThreads);
        step = kThreads / vectors;
        row = static_cast<int>(threadIdx.x) / vectors;
        c = (tile * kThreads + static_cast<int>(threadIdx.x) % vectors) * kCount;
        last = min((part + 1) * shape.part(), shape.pixels);
        first = row < step ? part * shape.part() + row : last;  // the last threads may own nothing
    }
    // Pixels of the thread of row `other` that owns the same channels.
    __device__ int64_t count(const Shape& shape, int other) const {
        const int64_t begin = part * shape.part() + other;
        return begin < last ? (last - begin + step - 1) / step : 0;
    }
    __device__ int64_t place(const Shape& shape, int64_t pixel) const {
        return (image * shape.pixels + pixel) * shape.channels + c;
    }
};

template <typename T, int kCount, typename Pixel>
__device__ Pack<T, kCount> load(const Pixel* from) {
    const auto stored = *reinterpret_cast<const Pack<Pixel, kCount>*>(from);
    Pack<T, kCount> result;
#pragma unroll
    for (int i = 0; i < kCount; ++i) result.value[i] = static_cast<T>(stored.value[i]);
    return result;
}

template <typename T, int kCount, typename Pixel>
__device__ void store(Pixel* to, const Pack<T, kCount>& values) {
    Pack<Pixel, kCount> rounded;
#pragma unroll
    for (int i = 0; i < kCount; ++i) rounded.value[i] = static_cast<Pixel>(values.value[i]);
    *reinterpret_cast<Pack<Pixel, kCount>*>(to) = rounded;
}

// Mean and sum of squared differences from it, of `count` numbers (Chan et al. 1983, Algorithms for Computing the
// Sample Variance, equations 2.1): exact also where the mean is far from 0.
template <typename T>
struct Moments {
    T mean, squares;  // no initial values: shared memory cannot have them

    __device__ void add(T value, T one_by_count) {
        const T before = value - mean;
        mean = std::fma(before, one_by_count, mean);
        squares = std::fma(before, value - mean, squares);
    }
    __device__ void add(T count, const Moments& other, T other_count) {
        if (other_count == T(0)) return;
        const T share = other_count / (count + other_count), difference = other.mean - mean;
        mean = std::fma(difference, share, mean);
        squares += other.squares + difference * difference * count * share;
    }
};

// moments [images][parts][2][channels] of each channel over the pixels of each part.
template <int kCount, typename Pixel, typename T>
__global__ void part_moments(Shape shape, const Pixel* maps, T* moments) {
    __shared__ Moments<T> shared[kThreads * kCount];
    const Share<kCount> share(shape);
    Moments<T> own[kCount] = {};
    T count = T(0);
    for (int64_t pixel = share.first; pixel < share.last; pixel += share.step) {
        const auto values = load<T, kCount>(maps + share.place(shape, pixel));
        count += T(1);
        const T one_by_count = T(1) / count;
#pragma unroll
        for (int i = 0; i < kCount; ++i) own[i].add(values.value[i], one_by_count);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) shared[threadIdx.x * kCount + i] = own[i];
    __syncthreads();
    if (share.row > 0) return;
    for (int row = 1; row < share.step; ++row) {
        const T more = static_cast<T>(share.count(shape, row));
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            own[i].add(count, shared[(row * share.vectors + threadIdx.x) * kCount + i], more);
        }
        count += more;
    }
    T* to = moments + (share.image * shape.parts() + share.part) * 2 * shape.channels + share.c;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        to[i] = own[i].mean;
        to[shape.channels + i] = own[i].squares;
    }
}

constexpr int kGroupThreads = 128;

// blockIdx.x: an image's group. statistics [2][images][groups]: means and variances.
template <typename T>
__global__ void group_moments(Shape shape, const T* moments, T* statistics) {
    __shared__ Moments<T> shared[kGroupThreads];
    __shared__ T counts[kGroupThreads];
    const int64_t image = blockIdx.x / shape.groups;
    const int in_group = shape.in_group(), first = static_cast<int>(blockIdx.x % shape.groups) * in_group;
    Moments<T> own = {};
    T count = T(0);
    for (int64_t i = threadIdx.x; i < shape.parts() * in_group; i += kGroupThreads) {
        const int64_t part = i / in_group;
        const T* from = moments + (image * shape.parts() + part) * 2 * shape.channels + first + i % in_group;
        const Moments<T> of_part = {from[0], from[shape.channels]};
        const T pixels = static_cast<T>(min((part + 1) * shape.part(), shape.pixels) - part * shape.part());
        own.add(count, of_part, pixels);
        count += pixels;
    }
    shared[threadIdx.x] = own;
    counts[threadIdx.x] = count;
    for (int half = kGroupThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) {
            shared[threadIdx.x].add(counts[threadIdx.x], shared[threadIdx.x + half], counts[threadIdx.x + half]);
            counts[threadIdx.x] += counts[threadIdx.x + half];
        }
    }
    if (threadIdx.x > 0) return;
    statistics[blockIdx.x] = shared[0].mean;
    statistics[shape.images * shape.groups + blockIdx.x] = shared[0].squares / counts[0];
}

// How a thread's channels are normalized: (x - mean) * scale + bias.
template <typename T, int kCount>
struct Normalization {
    T mean[kCount], scale[kCount], bias[kCount];

    __device__ Normalization(const Shape& shape, const Share<kCount>& share, const T* statistics, const T* weight,
                             const T* biases, T eps) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const T* own = statistics + share.image * shape.groups + (share.c + i) / shape.in_group();
            mean[i] = own[0];
            scale[i] = weight[share.c + i] / std::sqrt(own[shape.images * shape.groups] + eps);
            bias[i] = biases[share.c + i];
        }
    }
};

template <int kCount, typename Pixel, typename T>
__global__ void normalize(Shape shape, const Pixel* maps, const T* statistics, const T* weight, const T* biases, T eps,
                          const Pixel* residual, bool relu, Pixel* out) {
    const Share<kCount> share(shape);
    const Normalization<T, kCount> norm(shape, share, statistics, weight, biases, eps);
    for (int64_t pixel = share.first; pixel < share.last; pixel += share.step) {
        const int64_t place = share.place(shape, pixel);
        auto values = load<T, kCount>(maps + place);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            values.value[i] = std::fma(values.value[i] - norm.mean[i], norm.scale[i], norm.bias[i]);
        }
        if (residual) {
            const auto added = load<T, kCount>(residual + place);
#pragma unroll
            for (int i = 0; i < kCount; ++i) values.value[i] += added.value[i];
        }
        if (relu) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (values.value[i] < T(0)) values.value[i] = T(0);  // NaN stays
            }
        }
        store(out + place, values);
    }
}

// Loads gradients, 0 where the ReLU was; `centered` gets x - mean.
template <int kCount, typename Pixel, typename T>
__device__ Pack<T, kCount> load_gradient(const Pixel* grad, const Pixel* maps, int64_t place,
                                         const Normalization<T, kCount>& norm, bool relu, Pack<T, kCount>* centered) {
    auto gradient = load<T, kCount>(grad + place);
    *centered = load<T, kCount>(maps + place);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        centered->value[i] -= norm.mean[i];
        if (relu && std::fma(centered->value[i], norm.scale[i], norm.bias[i]) <= T(0)) gradient.value[i] = T(0);
    }
    return gradient;
}

// sums [images][parts][2][channels] of the gradient, and of the gradient times (x - mean).
template <int kCount, typename Pixel, typename T>
__global__ void part_sums(Shape shape, const Pixel* grad, const Pixel* maps, const T* statistics, const T* weight,
                          const T* biases, T eps, bool relu, T* sums) {
    __shared__ Pack<T, 2> shared[kThreads * kCount];
    const Share<kCount> share(shape);
    const Normalization<T, kCount> norm(shape, share, statistics, weight, biases, eps);
    Pack<T, 2> own[kCount] = {};
    for (int64_t pixel = share.first; pixel < share.last; pixel += share.step) {
        Pack<T, kCount> centered;
        const auto gradient = load_gradient(grad, maps, share.place(shape, pixel), norm, relu, &centered);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            own[i].value[0] += gradient.value[i];
            own[i].value[1] = std::fma(gradient.value[i], centered.value[i], own[i].value[1]);
        }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) shared[threadIdx.x * kCount + i] = own[i];
    __syncthreads();
    if (share.row > 0) return;
    T* to = sums + (share.image * shape.parts() + share.part) * 2 * shape.channels + share.c;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        for (int row = 1; row < share.step; ++row) {
            const auto& more = shared[(row * share.vectors + threadIdx.x) * kCount + i];
            own[i].value[0] += more.value[0];
            own[i].value[1] += more.value[1];
        }
        to[i] = own[i].value[0];
        to[shape.channels + i] = own[i].value[1];
    }
}

constexpr int kColumns = 32, kRows = kThreads / kColumns;

// to [outer][width] = sums over the rows of from [outer][rows][width]. blockIdx.x: 32 columns of one of `outer`.
template <typename T>
__global__ void sum_rows(int64_t rows, int width, const T* from, T* to) {
    __shared__ T shared[kThreads];
    const int tiles = (width + kColumns - 1) / kColumns, row = static_cast<int>(threadIdx.x) / kColumns;
    const int column = static_cast<int>(blockIdx.x % tiles) * kColumns + static_cast<int>(threadIdx.x) % kColumns;
    const int64_t outer = blockIdx.x / tiles;
    T sum = T(0);
    for (int64_t r = row; r < rows && column < width; r += kRows) sum += from[(outer * rows + r) * width + column];
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (row > 0 || column >= width) return;
    for (int r = 1; r < kRows; ++r) sum += shared[r * kColumns + threadIdx.x];
    to[outer * width + column] = sum;
}

// For each image's group, means [2][images][groups] over its elements of g and of g z, where z are the normalized
// values and g is the gradient times the weight. sums [images][2][channels] become the image's part of the gradients of
// bias and weight.
template <typename T>
__global__ void group_sums(Shape shape, const T* statistics, const T* weight, T eps, T* sums, T* means) {
    const int64_t groups = shape.images * shape.groups;
    MASKRCNN_FOR_EACH(index, groups) {
        const T rate = T(1) / std::sqrt(statistics[groups + index] + eps);
        const int first = static_cast<int>(index % shape.groups) * shape.in_group();
        T* own = sums + index / shape.groups * 2 * shape.channels;
        T one = T(0), two = T(0);
        for (int c = first; c < first + shape.in_group(); ++c) {
            own[shape.channels + c] *= rate;
            one = std::fma(weight[c], own[c], one);
            two = std::fma(weight[c], own[shape.channels + c], two);
        }
        means[index] = one / static_cast<T>(shape.group_size());
        means[groups + index] = two / static_cast<T>(shape.group_size());
    }
}

// The gradient of the maps is (g - mean(g) - z mean(g z)) / standard deviation; see csrc/cpu/group_norm.cpp. Without
// `means` the statistics are constants.
template <int kCount, typename Pixel, typename T>
__global__ void to_maps(Shape shape, const Pixel* grad, const Pixel* maps, const T* statistics, const T* weight,
                        const T* biases, T eps, bool relu, const T* means, Pixel* out) {
    const Share<kCount> share(shape);
    const Normalization<T, kCount> norm(shape, share, statistics, weight, biases, eps);
    const int64_t groups = shape.images * shape.groups;
    T slope[kCount] = {}, offset[kCount] = {};
    if (means) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int64_t group = share.image * shape.groups + (share.c + i) / shape.in_group();
            const T rate = T(1) / std::sqrt(statistics[groups + group] + eps);
            slope[i] = -rate * rate * means[groups + group];
            offset[i] = -rate * means[group];
        }
    }
    for (int64_t pixel = share.first; pixel < share.last; pixel += share.step) {
        const int64_t place = share.place(shape, pixel);
        Pack<T, kCount> centered;
        auto values = load_gradient(grad, maps, place, norm, relu, &centered);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const T constant = std::fma(centered.value[i], slope[i], offset[i]);
            values.value[i] = std::fma(values.value[i], norm.scale[i], constant);
        }
        store(out + place, values);
    }
}

// Whether all these tensors' channels can be loaded and stored 16 bytes at a time.
inline bool fit_vectors(std::initializer_list<const Tensor*> tensors) {
    for (const Tensor* tensor : tensors) {
        const auto bytes = static_cast<int64_t>(tensor->element_size());
        const auto address = reinterpret_cast<uintptr_t>(tensor->const_data_ptr());
        if (tensor->size(3) * bytes % 16 != 0 || address % 16 != 0) return false;
    }
    return true;
}

template <typename T>
const T* pointer(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* writable(Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

template <int kCount, typename Pixel, typename T>
void run_forward(const Tensor& maps, const Tensor& weight, const Tensor& bias, bool given,
                 const std::optional<Tensor>& residual, double eps, bool relu, Tensor& out, Tensor& statistics) {
    const Launch launch(maps);
    const Shape shape(maps, statistics.size(2));
    if (!given) {
        Tensor moments = torch::stable::new_empty(weight, {shape.images, shape.parts(), 2, shape.channels});
        part_moments<kCount, Pixel, T><<<shape.blocks<kCount>(), kThreads, 0, launch.stream()>>>(
            shape, pointer<Pixel>(maps), writable<T>(moments));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        const auto groups = static_cast<unsigned>(shape.images * shape.groups);
        group_moments<T>
            <<<groups, kGroupThreads, 0, launch.stream()>>>(shape, pointer<T>(moments), writable<T>(statistics));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    normalize<kCount, Pixel, T><<<shape.blocks<kCount>(), kThreads, 0, launch.stream()>>>(
        shape, pointer<Pixel>(maps), pointer<T>(statistics), pointer<T>(weight), pointer<T>(bias), static_cast<T>(eps),
        residual ? pointer<Pixel>(*residual) : nullptr, relu, writable<Pixel>(out));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <int kCount, typename Pixel, typename T>
void run_backward(const Tensor& grad, const Tensor& maps, const Tensor& weight, const Tensor& bias,
                  const Tensor& statistics, double eps, bool relu, bool given, Tensor& gradient, Tensor& parameters) {
    const Launch launch(maps);
    const Shape shape(maps, statistics.size(2));
    const int width = 2 * shape.channels;
    const auto columns = static_cast<unsigned>((width + kColumns - 1) / kColumns);
    Tensor parts = torch::stable::new_empty(weight, {shape.images, shape.parts(), width});
    Tensor sums = torch::stable::new_empty(weight, {shape.images, width});
    Tensor means = torch::stable::new_empty(weight, {2, shape.images, shape.groups});
    part_sums<kCount, Pixel, T><<<shape.blocks<kCount>(), kThreads, 0, launch.stream()>>>(
        shape, pointer<Pixel>(grad), pointer<Pixel>(maps), pointer<T>(statistics), pointer<T>(weight), pointer<T>(bias),
        static_cast<T>(eps), relu, writable<T>(parts));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const unsigned of_images = columns * static_cast<unsigned>(shape.images);
    sum_rows<T>
        <<<of_images, kThreads, 0, launch.stream()>>>(shape.parts(), width, pointer<T>(parts), writable<T>(sums));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    group_sums<T><<<Launch::blocks(means.numel() / 2), kThreads, 0, launch.stream()>>>(
        shape, pointer<T>(statistics), pointer<T>(weight), static_cast<T>(eps), writable<T>(sums), writable<T>(means));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    sum_rows<T>
        <<<columns, kThreads, 0, launch.stream()>>>(shape.images, width, pointer<T>(sums), writable<T>(parameters));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    to_maps<kCount, Pixel, T><<<shape.blocks<kCount>(), kThreads, 0, launch.stream()>>>(
        shape, pointer<Pixel>(grad), pointer<Pixel>(maps), pointer<T>(statistics), pointer<T>(weight), pointer<T>(bias),
        static_cast<T>(eps), relu, given ? nullptr : pointer<T>(means), writable<Pixel>(gradient));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor> group_norm(const Tensor& maps, const Tensor& weight, const Tensor& bias,
                                      const std::optional<Tensor>& statistics, const std::optional<Tensor>& residual,
                                      int64_t groups, double eps, bool relu) {
    check_group_norm(maps, weight, bias, statistics, residual, groups);
    Tensor out = torch::stable::new_empty(maps, {maps.size(0), maps.size(1), maps.size(2), maps.size(3)});
    Tensor own =
        statistics ? torch::stable::clone(*statistics) : torch::stable::new_empty(weight, {2, maps.size(0), groups});
    if (out.numel() == 0) return {out, own};
    const bool wide = fit_vectors({&maps, &out, residual ? &*residual : &out});
    with_types(maps.scalar_type(), [&](auto pixel, auto t) {
        using Pixel = decltype(pixel);
        using T = decltype(t);
        const auto run = wide ? run_forward<16 / sizeof(Pixel), Pixel, T> : run_forward<1, Pixel, T>;
        run(maps, weight, bias, statistics.has_value(), residual, eps, relu, out, own);
    });
    return {out, own};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad, const Tensor& maps, const Tensor& weight,
                                                       const Tensor& bias, const Tensor& statistics, double eps,
                                                       bool relu, bool given) {
    check_group_norm_backward(grad, maps, weight, bias, statistics);
    Tensor gradient = torch::stable::new_empty(maps, {maps.size(0), maps.size(1), maps.size(2), maps.size(3)});
    Tensor parameters = torch::stable::new_zeros(weight, {2, maps.size(3)});
    if (gradient.numel() > 0) {
        const bool wide = fit_vectors({&grad, &maps, &gradient});
        with_types(maps.scalar_type(), [&](auto pixel, auto t) {
            using Pixel = decltype(pixel);
            using T = decltype(t);
            const auto run = wide ? run_backward<16 / sizeof(Pixel), Pixel, T> : run_backward<1, Pixel, T>;
            run(grad, maps, weight, bias, statistics, eps, relu, given, gradient, parameters);
        });
    }
    const auto copy_of = [&](int64_t i) { return torch::stable::clone(torch::stable::select(parameters, 0, i)); };
    return {gradient, copy_of(1), copy_of(0)};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) {
    m.impl("group_norm", TORCH_BOX(&maskrcnn::group_norm));
    m.impl("group_norm_backward", TORCH_BOX(&maskrcnn::group_norm_backward));
}

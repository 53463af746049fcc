// Group normalization, channels last, forward and backward.
//
// First sums over the pixels for each channel, from which coefficients for each image and channel follow, then a
// multiply-add for each element. Sums are in double, where sums of squares lose nothing of what float32 holds, also if
// the mean is a thousand standard deviations. They are taken over parts of a map, which do not depend on the number of
// threads, and added in order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "huge_pages.h"
// from here on for one instruction set
#include "begin_set.h"
#include "channels.h"

namespace maskrcnn {
namespace MASKRCNN_SET {
namespace {

typedef double WideFloats __attribute__((vector_size(64)));
MASKRCNN_INLINE WideFloats widen(Simd<float>::Vec values) { return __builtin_convertvector(values, WideFloats); }
MASKRCNN_INLINE Simd<double>::Vec widen(Simd<double>::Vec values) { return values; }
MASKRCNN_INLINE double widen(float value) { return value; }
MASKRCNN_INLINE double widen(double value) { return value; }

// Maps [images, pixels, channels], and the parts of a map that sums are taken over.
struct Shape {
    int64_t images, pixels, channels, groups, part, parts;

    Shape(const Tensor& maps, int64_t groups_)
        : images(maps.size(0)), pixels(maps.size(1) * maps.size(2)), channels(maps.size(3)), groups(groups_) {
        constexpr int64_t kPart = 1 << 15;  // elements
        part = std::max<int64_t>(1, kPart / channels);
        parts = (pixels + part - 1) / part;
    }
    int64_t size() const { return pixels * channels; }
    int64_t group_of(int64_t channel) const { return channel / (channels / groups); }
    int64_t group_size() const { return pixels * (channels / groups); }
};

// Calls run(block, c, first, last) for blocks of kVecs vectors of channels, from c on, and for pixels first..last-1, so
// few that the L1 cache holds them: a block keeps its sums and coefficients in registers from pixel to pixel.
template <typename T, int kVecs, typename Run>
MASKRCNN_INLINE void for_blocks_of_pixels(const Shape& shape, int64_t begin, int64_t end, const Run& run) {
    const int64_t step = std::max<int64_t>(4, (1 << 12) / shape.channels);
    for (int64_t first = begin; first < end; first += step) {
        const int64_t last = std::min(end, first + step);
        for_blocks<T, kVecs>(shape.channels,
                             [&](auto block, int64_t c) MASKRCNN_INLINE_LAMBDA { run(block, c, first, last); });
    }
}

// sums [2][channels] over the pixels begin..end-1 of what add(block, index, c, one, two) adds to `one` and `two` for
// the channels from c on of a pixel, which are at `index`.
template <typename T, typename Add>
MASKRCNN_INLINE void sum_pixels(const Shape& shape, int64_t begin, int64_t end, double* sums, const Add& add) {
    constexpr int kVecs = 2;  // two sums of each, as wide as double is: half of 16 registers
    const int64_t channels = shape.channels;
    std::fill_n(sums, 2 * channels, 0.0);
    for_blocks_of_pixels<T, kVecs>(shape, begin, end,
                                   [&](auto block, int64_t c, int64_t first, int64_t last) MASKRCNN_INLINE_LAMBDA {
                                       using Block = decltype(block);
                                       decltype(widen(typename Block::Vec())) one[Block::kVecs], two[Block::kVecs];
                                       __builtin_memcpy(one, sums + c, sizeof(one));
                                       __builtin_memcpy(two, sums + channels + c, sizeof(two));
                                       for (int64_t pixel = first; pixel < last; ++pixel) {
#pragma GCC unroll 2
                                           for (int i = 0; i < Block::kVecs; ++i) {
                                               const int64_t from = c + i * Block::kLanes;
                                               add(block, pixel * channels + from, from, one[i], two[i]);
                                           }
                                       }
                                       __builtin_memcpy(sums + c, one, sizeof(one));
                                       __builtin_memcpy(sums + channels + c, two, sizeof(two));
                                   });
}

// Both passes over all images: sum(image, begin, end, sums) gives the sums [2][channels] of the pixels begin..end-1,
// finish(image, sums) takes those of the whole image, and apply(image, begin, end) writes. A small map is still in the
// cache when it is read for the second time.
template <typename Sum, typename Finish, typename Apply>
void two_passes(const Shape& shape, int64_t element_size, const Sum& sum, const Finish& finish, const Apply& apply) {
    constexpr int64_t kCached = 1 << 20;  // bytes
    const int64_t width = 2 * shape.channels, parts = shape.parts;
    const auto end_of = [&](int64_t part) { return std::min(shape.pixels, (part + 1) * shape.part); };
    const auto add = [&](const double* from, double* to) {
        for (int64_t i = 0; i < width; ++i) to[i] += from[i];
    };
    if (shape.images >= 2 * torch::stable::get_num_threads() && shape.size() * element_size <= kCached) {
        torch::stable::parallel_for(0, shape.images, 1, [&](int64_t begin, int64_t end) {
            std::vector<double> whole(width), one(width);
            for (int64_t image = begin; image < end; ++image) {
                std::fill(whole.begin(), whole.end(), 0.0);
                for (int64_t part = 0; part < parts; ++part) {
                    sum(image, part * shape.part, end_of(part), one.data());
                    add(one.data(), whole.data());
                }
                finish(image, whole.data());
                apply(image, 0, shape.pixels);
            }
        });
        return;
    }
    std::vector<double> sums(shape.images * parts * width), whole(width);
    torch::stable::parallel_for(0, shape.images * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            sum(i / parts, i % parts * shape.part, end_of(i % parts), sums.data() + i * width);
        }
    });
    for (int64_t image = 0; image < shape.images; ++image) {
        std::fill(whole.begin(), whole.end(), 0.0);
        for (int64_t part = 0; part < parts; ++part) add(sums.data() + (image * parts + part) * width, whole.data());
        finish(image, whole.data());
    }
    torch::stable::parallel_for(0, shape.images * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) apply(i / parts, i % parts * shape.part, end_of(i % parts));
    });
}

// How the elements of all images are normalized: x * scale + shift, with one of each per image and channel.
template <typename Sum>
struct Normalization {
    std::vector<Sum> scale, shift;

    explicit Normalization(const Shape& shape) : scale(shape.images * shape.channels), shift(scale.size()) {}

    // statistics [2][images][groups]: means and variances
    void set(const Shape& shape, int64_t image, const Sum* statistics, const Sum* weight, const Sum* bias, double eps) {
        const Sum* means = statistics + image * shape.groups;
        const Sum* variances = means + shape.images * shape.groups;
        for (int64_t c = 0; c < shape.channels; ++c) {
            const int64_t group = shape.group_of(c), i = image * shape.channels + c;
            const double factor = weight[c] / std::sqrt(variances[group] + eps);
            scale[i] = static_cast<Sum>(factor);
            shift[i] = static_cast<Sum>(bias[c] - means[group] * factor);
        }
    }
};

template <typename T, typename Sum = typename Channels<T>::Sum>
void forward(const Tensor& maps, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& given,
             const std::optional<Tensor>& residual, double eps, bool relu, Tensor& out, Tensor& statistics) {
    const Shape shape(maps, statistics.size(2));
    const auto* x = static_cast<const T*>(maps.const_data_ptr());
    const auto* added = residual ? static_cast<const T*>(residual->const_data_ptr()) : nullptr;
    const auto* factors = static_cast<const Sum*>(weight.const_data_ptr());
    const auto* biases = static_cast<const Sum*>(bias.const_data_ptr());
    auto* to = static_cast<T*>(out.mutable_data_ptr());
    auto* moments = static_cast<Sum*>(statistics.mutable_data_ptr());
    Normalization<Sum> norm(shape);
    if (given) std::copy_n(static_cast<const Sum*>(given->const_data_ptr()), statistics.numel(), moments);

    const auto sum = [&](int64_t image, int64_t begin, int64_t end, double* sums) {
        if (given) return;
        const T* from = x + image * shape.size();
        sum_pixels<T>(shape, begin, end, sums,
                      [&](auto block, int64_t index, int64_t, auto& one, auto& two) MASKRCNN_INLINE_LAMBDA {
                          const auto value = widen(decltype(block)::Lanes::load(from + index));
                          one += value;
                          two += value * value;
                      });
    };
    const auto finish = [&](int64_t image, const double* sums) {
        for (int64_t group = 0; group < shape.groups && !given; ++group) {
            double one = 0, two = 0;
            for (int64_t c = group * shape.channels / shape.groups; c < (group + 1) * shape.channels / shape.groups;
                 ++c) {
                one += sums[c];
                two += sums[shape.channels + c];
            }
            const double mean = one / shape.group_size();
            moments[image * shape.groups + group] = static_cast<Sum>(mean);
            // not std::max, which would make a variance of 0 of one that is not a number
            const double variance = two / shape.group_size() - mean * mean;
            moments[(shape.images + image) * shape.groups + group] = static_cast<Sum>(variance < 0 ? 0 : variance);
        }
        norm.set(shape, image, moments, factors, biases, eps);
    };
    const auto apply = [&](int64_t image, int64_t begin, int64_t end) {
        const int64_t first_channel = image * shape.channels, offset = image * shape.size();
        for_blocks_of_pixels<T, 4>(
            shape, begin, end, [&](auto block, int64_t c, int64_t first, int64_t last) MASKRCNN_INLINE_LAMBDA {
                using Block = decltype(block);
                typename Block::Vec scale[Block::kVecs], shift[Block::kVecs], values[Block::kVecs], more[Block::kVecs];
                load_all<typename Block::SumLanes, Block::kVecs>(scale, norm.scale.data() + first_channel + c);
                load_all<typename Block::SumLanes, Block::kVecs>(shift, norm.shift.data() + first_channel + c);
                for (int64_t at = offset + first * shape.channels + c; first < last; ++first, at += shape.channels) {
                    load_all<typename Block::Lanes, Block::kVecs>(values, x + at);
                    if (added) load_all<typename Block::Lanes, Block::kVecs>(more, added + at);
#pragma GCC unroll 4
                    for (int i = 0; i < Block::kVecs; ++i) {
                        values[i] = values[i] * scale[i] + shift[i];
                        if (added) values[i] += more[i];
                        if (relu) values[i] = values[i] < 0 ? typename Block::Vec{} : values[i];  // NaN stays
                    }
                    store_all<typename Block::Lanes, Block::kVecs>(to + at, values);
                }
            });
    };
    two_passes(shape, sizeof(T), sum, finish, apply);
}

// Wu & He 2018 gives no gradient; it follows from equations 1, 2 and 6. With z the normalized values before weight and
// bias, g the gradient of the results times the weight, and means over a group, the gradient of the input is
// (g - mean(g) - z mean(g z)) / standard deviation; the means are left out where the statistics are given.
template <typename T, typename Sum = typename Channels<T>::Sum>
void backward(const Tensor& grad, const Tensor& maps, const Tensor& weight, const Tensor& bias,
              const Tensor& statistics, double eps, bool relu, bool given, Tensor& to_maps, Tensor& to_weight,
              Tensor& to_bias) {
    const Shape shape(maps, statistics.size(2));
    const auto* x = static_cast<const T*>(maps.const_data_ptr());
    const auto* gradient = static_cast<const T*>(grad.const_data_ptr());
    const auto* factors = static_cast<const Sum*>(weight.const_data_ptr());
    const auto* moments = static_cast<const Sum*>(statistics.const_data_ptr());
    const Sum *means = moments, *variances = moments + shape.images * shape.groups;
    auto* to = static_cast<T*>(to_maps.mutable_data_ptr());
    Normalization<Sum> norm(shape);
    for (int64_t image = 0; image < shape.images; ++image) {
        norm.set(shape, image, moments, factors, static_cast<const Sum*>(bias.const_data_ptr()), eps);
    }
    // of all images: the gradient of the input is scale * gradient + slope * x + offset
    std::vector<Sum> slope(norm.scale.size()), offset(slope.size());
    std::vector<double> channel_sums(2 * slope.size());  // [images][2][channels]

    const auto sum = [&](int64_t image, int64_t begin, int64_t end, double* sums) {
        const int64_t first = image * shape.channels, start = image * shape.size();
        sum_pixels<T>(shape, begin, end, sums,
                      [&](auto block, int64_t index, int64_t c, auto& one, auto& two) MASKRCNN_INLINE_LAMBDA {
                          using Block = decltype(block);
                          using Of = typename Block::SumLanes;
                          const auto value = Block::Lanes::load(x + start + index);
                          auto from = Block::Lanes::load(gradient + start + index);
                          if (relu) {
                              const auto result = value * Of::load(norm.scale.data() + first + c) +
                                                  Of::load(norm.shift.data() + first + c);
                              from = result <= 0 ? typename Block::Vec{} : from;
                          }
                          one += widen(from);
                          two += widen(from) * widen(value);
                      });
    };
    const auto finish = [&](int64_t image, const double* sums) {
        const int64_t first = image * shape.channels, in_group = shape.channels / shape.groups;
        double* own = channel_sums.data() + 2 * first;
        for (int64_t group = 0; group < shape.groups; ++group) {
            const double mean = means[image * shape.groups + group];
            const double rate = 1 / std::sqrt(variances[image * shape.groups + group] + eps);
            double one = 0, two = 0;
            for (int64_t c = group * in_group; c < (group + 1) * in_group; ++c) {
                own[c] = sums[c];
                own[shape.channels + c] = (sums[shape.channels + c] - mean * sums[c]) * rate;
                one += factors[c] * own[c];
                two += factors[c] * own[shape.channels + c];
            }
            for (int64_t i = first + group * in_group; i < first + (group + 1) * in_group && !given; ++i) {
                slope[i] = static_cast<Sum>(-rate * rate * two / shape.group_size());
                offset[i] = static_cast<Sum>(rate * (rate * mean * two - one) / shape.group_size());
            }
        }
    };
    const auto apply = [&](int64_t image, int64_t begin, int64_t end) {
        const int64_t first_channel = image * shape.channels, start = image * shape.size();
        for_blocks_of_pixels<T, 2>(
            shape, begin, end, [&](auto block, int64_t c, int64_t first, int64_t last) MASKRCNN_INLINE_LAMBDA {
                using Block = decltype(block);
                using Of = typename Block::SumLanes;
                constexpr int kVecs = Block::kVecs;
                typename Block::Vec scale[kVecs], shift[kVecs], slopes[kVecs], offsets[kVecs], values[kVecs],
                    from[kVecs];
                load_all<Of, kVecs>(scale, norm.scale.data() + first_channel + c);
                load_all<Of, kVecs>(shift, norm.shift.data() + first_channel + c);
                load_all<Of, kVecs>(slopes, slope.data() + first_channel + c);
                load_all<Of, kVecs>(offsets, offset.data() + first_channel + c);
                for (int64_t at = start + first * shape.channels + c; first < last; ++first, at += shape.channels) {
                    load_all<typename Block::Lanes, kVecs>(values, x + at);
                    load_all<typename Block::Lanes, kVecs>(from, gradient + at);
#pragma GCC unroll 2
                    for (int i = 0; i < kVecs; ++i) {
                        if (relu) from[i] = values[i] * scale[i] + shift[i] <= 0 ? typename Block::Vec{} : from[i];
                        values[i] = from[i] * scale[i] + values[i] * slopes[i] + offsets[i];
                    }
                    store_all<typename Block::Lanes, kVecs>(to + at, values);
                }
            });
    };
    two_passes(shape, 2 * sizeof(T), sum, finish, apply);

    auto* weight_gradient = static_cast<Sum*>(to_weight.mutable_data_ptr());
    auto* bias_gradient = static_cast<Sum*>(to_bias.mutable_data_ptr());
    std::vector<double> whole(2 * shape.channels);
    for (int64_t image = 0; image < shape.images; ++image) {
        const double* own = channel_sums.data() + image * 2 * shape.channels;
        for (int64_t i = 0; i < 2 * shape.channels; ++i) whole[i] += own[i];
    }
    for (int64_t c = 0; c < shape.channels; ++c) {
        bias_gradient[c] = static_cast<Sum>(whole[c]);
        weight_gradient[c] = static_cast<Sum>(whole[shape.channels + c]);
    }
}

// The instance of a function template for the maps' dtype.
#define MASKRCNN_FOR_DTYPE(type, function)                 \
    ((type) == ScalarType::Double     ? function<double>   \
     : (type) == ScalarType::BFloat16 ? function<BFloat16> \
     : (type) == ScalarType::Half     ? function<Half>     \
                                      : function<float>)

}  // namespace

std::tuple<Tensor, Tensor> group_norm(const Tensor& maps, const Tensor& weight, const Tensor& bias,
                                      const std::optional<Tensor>& statistics, const std::optional<Tensor>& residual,
                                      int64_t groups, double eps, bool relu) {
    check_group_norm(maps, weight, bias, statistics, residual, groups);
    Tensor out = torch::stable::empty({maps.size(0), maps.size(1), maps.size(2), maps.size(3)}, maps.scalar_type());
    use_huge_pages(out);
    Tensor own = torch::stable::empty({2, maps.size(0), groups}, weight.scalar_type());
    MASKRCNN_FOR_DTYPE(maps.scalar_type(), forward)
    (maps, weight, bias, statistics, residual, eps, relu, out, own);
    return {out, own};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad, const Tensor& maps, const Tensor& weight,
                                                       const Tensor& bias, const Tensor& statistics, double eps,
                                                       bool relu, bool given) {
    check_group_norm_backward(grad, maps, weight, bias, statistics);
    const int64_t channels = maps.size(3);
    Tensor to_maps = torch::stable::empty({maps.size(0), maps.size(1), maps.size(2), channels}, maps.scalar_type());
    use_huge_pages(to_maps);
    Tensor to_weight = torch::stable::empty({channels}, weight.scalar_type());
    Tensor to_bias = torch::stable::empty({channels}, weight.scalar_type());
    MASKRCNN_FOR_DTYPE(maps.scalar_type(), backward)
    (grad, maps, weight, bias, statistics, eps, relu, given, to_maps, to_weight, to_bias);
    return {to_maps, to_weight, to_bias};
}

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

#include "end_set.h"

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
#include "map_passes.h"

namespace maskrcnn {
namespace MASKRCNN_SET {
namespace {

// How the elements of all images are normalized: (x - mean) * scale + bias, with a mean and a scale for each image and
// channel.
template <typename Sum>
struct Normalization {
    std::vector<Sum> mean, scale;
    const Sum *weight, *bias;
    double eps;

    Normalization(const MapShape& shape, const Tensor& weight_, const Tensor& bias_, double eps_)
        : mean(shape.images * shape.channels),
          scale(mean.size()),
          weight(static_cast<const Sum*>(weight_.const_data_ptr())),
          bias(static_cast<const Sum*>(bias_.const_data_ptr())),
          eps(eps_) {}

    // statistics [2][images][groups]: means and variances
    void set(const MapShape& shape, int64_t image, const Sum* statistics) {
        const Sum* means = statistics + image * shape.groups;
        const Sum* variances = means + shape.images * shape.groups;
        int64_t i = image * shape.channels, c = 0;
        for (int64_t group = 0; group < shape.groups; ++group) {
            const double rate = 1 / std::sqrt(variances[group] + eps);
            for (const int64_t end = c + shape.in_group(); c < end; ++c, ++i) {
                mean[i] = means[group];
                scale[i] = static_cast<Sum>(weight[c] * rate);
            }
        }
    }
};

// The numbers of a block of channels, from `place` on for image and channel, from c on for the channel.
template <typename Block>
struct BlockNormalization {
    using Of = typename Block::SumLanes;
    typename Block::Vec mean[Block::kVecs], scale[Block::kVecs], bias[Block::kVecs];

    template <typename Sum>
    MASKRCNN_INLINE BlockNormalization(const Normalization<Sum>& norm, int64_t place, int64_t c) {
        load_all<Of, Block::kVecs>(mean, norm.mean.data() + place);
        load_all<Of, Block::kVecs>(scale, norm.scale.data() + place);
        load_all<Of, Block::kVecs>(bias, norm.bias + c);
    }
    MASKRCNN_INLINE typename Block::Vec of_centered(typename Block::Vec centered, int i) const {
        return centered * scale[i] + bias[i];
    }
};

// Sums of a map's elements and of their squares to the means and variances of its groups.
template <typename Sum>
void finish_statistics(const MapShape& shape, int64_t image, const double* sums, Sum* statistics) {
    Sum* means = statistics + image * shape.groups;
    Sum* variances = means + shape.images * shape.groups;
    for (int64_t group = 0; group < shape.groups; ++group) {
        double one = 0, two = 0;
        for (int64_t c = group * shape.in_group(); c < (group + 1) * shape.in_group(); ++c) {
            one += sums[c];
            two += sums[shape.channels + c];
        }
        const double mean = one / shape.group_size(), variance = two / shape.group_size() - mean * mean;
        means[group] = static_cast<Sum>(mean);
        variances[group] = static_cast<Sum>(variance < 0 ? 0 : variance);  // NaN stays, with std::max it would not
    }
}

// Writes the normalized pixels begin..end-1 of a map. All pointers are to image `image`.
template <typename T, typename Sum>
void normalize(const MapShape& shape, const Normalization<Sum>& norm, int64_t image, int64_t begin, int64_t end,
               const T* x, const T* residual, bool relu, T* to) {
    for_blocks_of_pixels<T>(
        shape, begin, end, [&](auto block, int64_t c, int64_t first, int64_t last) MASKRCNN_INLINE_LAMBDA {
            using Block = decltype(block);
            using Lanes = typename Block::Lanes;
            const BlockNormalization<Block> own(norm, image * shape.channels + c, c);
            typename Block::Vec values[Block::kVecs], more[Block::kVecs];
            for (int64_t at = first * shape.channels + c; first < last; ++first, at += shape.channels) {
                load_all<Lanes, Block::kVecs>(values, x + at);
                if (residual) load_all<Lanes, Block::kVecs>(more, residual + at);
#pragma GCC unroll 2
                for (int i = 0; i < Block::kVecs; ++i) {
                    values[i] = own.of_centered(values[i] - own.mean[i], i);
                    if (residual) values[i] += more[i];
                    if (relu) values[i] = values[i] < 0 ? typename Block::Vec{} : values[i];  // NaN stays
                }
                store_all<Lanes, Block::kVecs>(to + at, values);
            }
        });
}

template <typename T, typename Sum = typename Channels<T>::Sum>
void forward(const Tensor& maps, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& given,
             const std::optional<Tensor>& residual, double eps, bool relu, Tensor& out, Tensor& statistics) {
    const MapShape shape(maps, statistics.size(2));
    const auto* x = static_cast<const T*>(maps.const_data_ptr());
    const auto* added = residual ? static_cast<const T*>(residual->const_data_ptr()) : nullptr;
    auto* to = static_cast<T*>(out.mutable_data_ptr());
    auto* moments = static_cast<Sum*>(statistics.mutable_data_ptr());
    Normalization<Sum> norm(shape, weight, bias, eps);
    if (given) std::copy_n(static_cast<const Sum*>(given->const_data_ptr()), statistics.numel(), moments);
    const auto sum = [&](int64_t image, int64_t begin, int64_t end, double* sums) {
        if (given) return;
        const T* from = x + image * shape.size();
        sum_pixels<T>(shape, begin, end, sums,
                      [&](auto block, int64_t at, int64_t, auto& one, auto& two) MASKRCNN_INLINE_LAMBDA {
                          const auto value = widen(decltype(block)::Lanes::load(from + at));
                          one += value;
                          two += value * value;
                      });
    };
    const auto finish = [&](int64_t image, const double* sums) {
        if (!given) finish_statistics(shape, image, sums, moments);
        norm.set(shape, image, moments);
    };
    const auto apply = [&](int64_t image, int64_t begin, int64_t end) {
        const int64_t start = image * shape.size();
        normalize(shape, norm, image, begin, end, x + start, added ? added + start : nullptr, relu, to + start);
    };
    two_passes(shape, sizeof(T), sum, finish, apply);
}

// With z the normalized values before weight and bias, and g the gradient of the results times the weight, the gradient
// of the maps is (g - mean(g) - z mean(g z)) / standard deviation, with means over a group; the means are left out
// where the statistics are constants. By channel: scale * gradient + slope * (x - mean) + offset.
template <typename T, typename Sum>
struct Gradient {
    const MapShape shape;
    const T *grad, *x;
    const Sum* statistics;
    bool relu, given;
    Normalization<Sum> norm;
    std::vector<Sum> slope, offset;  // [images][channels]
    std::vector<double> sums;        // [images][2][channels]: the images' parts of the gradients of bias and weight

    Gradient(const Tensor& grad_, const Tensor& maps, const Tensor& weight, const Tensor& bias,
             const Tensor& statistics_, double eps, bool relu_, bool given_)
        : shape(maps, statistics_.size(2)),
          grad(static_cast<const T*>(grad_.const_data_ptr())),
          x(static_cast<const T*>(maps.const_data_ptr())),
          statistics(static_cast<const Sum*>(statistics_.const_data_ptr())),
          relu(relu_),
          given(given_),
          norm(shape, weight, bias, eps),
          slope(shape.images * shape.channels),
          offset(slope.size()),
          sums(2 * slope.size()) {
        for (int64_t image = 0; image < shape.images; ++image) norm.set(shape, image, statistics);
    }

    // Of the gradient, 0 where the ReLU was, and of the gradient times (x - mean).
    void sum(int64_t image, int64_t begin, int64_t end, double* to) const {
        const T *from = x + image * shape.size(), *gradient = grad + image * shape.size();
        const Sum *mean = norm.mean.data() + image * shape.channels,
                  *scale = norm.scale.data() + image * shape.channels;
        sum_pixels<T>(shape, begin, end, to,
                      [&](auto block, int64_t at, int64_t c, auto& one, auto& two) MASKRCNN_INLINE_LAMBDA {
                          using Block = decltype(block);
                          using Of = typename Block::SumLanes;
                          const auto centered = Block::Lanes::load(from + at) - Of::load(mean + c);
                          auto value = Block::Lanes::load(gradient + at);
                          if (relu) {
                              const auto result = centered * Of::load(scale + c) + Of::load(norm.bias + c);
                              value = result <= 0 ? typename Block::Vec{} : value;
                          }
                          one += widen(value);
                          two += widen(value) * widen(centered);
                      });
    }

    void finish(int64_t image, const double* from) {
        const Sum* variances = statistics + (shape.images + image) * shape.groups;
        const int64_t first = image * shape.channels;
        double *of_bias = sums.data() + 2 * first, *of_weight = of_bias + shape.channels;
        for (int64_t group = 0; group < shape.groups; ++group) {
            const int64_t begin = group * shape.in_group(), end = begin + shape.in_group();
            const double rate = 1 / std::sqrt(variances[group] + norm.eps);
            double one = 0, two = 0;
            for (int64_t c = begin; c < end; ++c) {
                of_bias[c] = from[c];
                of_weight[c] = from[shape.channels + c] * rate;
                one += norm.weight[c] * of_bias[c];
                two += norm.weight[c] * of_weight[c];
            }
            for (int64_t c = begin; c < end && !given; ++c) {
                slope[first + c] = static_cast<Sum>(-rate * rate * two / shape.group_size());
                offset[first + c] = static_cast<Sum>(-rate * one / shape.group_size());
            }
        }
    }

    void apply(int64_t image, int64_t begin, int64_t end, T* to) const {
        const int64_t start = image * shape.size();
        for_blocks_of_pixels<T>(
            shape, begin, end, [&](auto block, int64_t c, int64_t first, int64_t last) MASKRCNN_INLINE_LAMBDA {
                using Block = decltype(block);
                using Lanes = typename Block::Lanes;
                constexpr int kVecs = Block::kVecs;
                const int64_t place = image * shape.channels + c;
                const BlockNormalization<Block> own(norm, place, c);
                typename Block::Vec slopes[kVecs], offsets[kVecs], centered[kVecs], values[kVecs];
                load_all<typename Block::SumLanes, kVecs>(slopes, slope.data() + place);
                load_all<typename Block::SumLanes, kVecs>(offsets, offset.data() + place);
                for (int64_t at = start + first * shape.channels + c; first < last; ++first, at += shape.channels) {
                    load_all<Lanes, kVecs>(centered, x + at);
                    load_all<Lanes, kVecs>(values, grad + at);
#pragma GCC unroll 2
                    for (int i = 0; i < kVecs; ++i) {
                        centered[i] -= own.mean[i];
                        if (relu) values[i] = own.of_centered(centered[i], i) <= 0 ? typename Block::Vec{} : values[i];
                        values[i] = values[i] * own.scale[i] + (centered[i] * slopes[i] + offsets[i]);
                    }
                    store_all<Lanes, kVecs>(to + at, values);
                }
            });
    }
};

template <typename T, typename Sum = typename Channels<T>::Sum>
void backward(const Tensor& grad, const Tensor& maps, const Tensor& weight, const Tensor& bias,
              const Tensor& statistics, double eps, bool relu, bool given, Tensor& to_maps, Tensor& to_weight,
              Tensor& to_bias) {
    Gradient<T, Sum> gradient(grad, maps, weight, bias, statistics, eps, relu, given);
    const MapShape& shape = gradient.shape;
    auto* to = static_cast<T*>(to_maps.mutable_data_ptr());
    two_passes(
        shape, 2 * sizeof(T),
        [&](int64_t image, int64_t begin, int64_t end, double* sums) { gradient.sum(image, begin, end, sums); },
        [&](int64_t image, const double* sums) { gradient.finish(image, sums); },
        [&](int64_t image, int64_t begin, int64_t end) { gradient.apply(image, begin, end, to); });
    std::vector<double> whole(2 * shape.channels);
    for (size_t i = 0; i < gradient.sums.size(); ++i) whole[i % whole.size()] += gradient.sums[i];
    std::copy_n(whole.data(), shape.channels, static_cast<Sum*>(to_bias.mutable_data_ptr()));
    std::copy_n(whole.data() + shape.channels, shape.channels, static_cast<Sum*>(to_weight.mutable_data_ptr()));
}

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

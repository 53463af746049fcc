// Pixels and values of a mask that is resized to its box, shared by the CPU and the CUDA kernels.
//
// A mask of M entries per side is padded with zeros by one entry, so that its outline can end inside the box: entry i
// of the mask is entry i + 1 of the padded one.
//
// aligned: coordinates are continuous, pixel x covers [x, x + 1). Its centre is at position (x + 0.5 - x1) / (x2 - x1)
// * M + 0.5 of the padded mask. Positions are computed in double, in which multiples of one half are exact: pixels on
// the outline of a binary mask have exactly the value of the threshold.
//
// Not aligned: torchvision's paste_masks_in_image. The box is enlarged about its centre in proportion to the padding,
// truncated to whole pixels, the last one included, and the padded mask is resized to it by
// F.interpolate(mode="bilinear", align_corners=False), with the same rounding of positions (one fused multiply-add);
// values may differ in the last bit, which only affects pixels on the threshold.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace maskrcnn {

constexpr int64_t kMaskPadding = 1;  // zeros around a mask

MASKRCNN_HD bool is_finite_box(const float* box) {
    for (int i = 0; i < 4; ++i) {
        if (!(std::fabs(box[i]) <= std::numeric_limits<float>::max())) return false;
    }
    return true;
}

// The entries of the padded mask on both sides of a pixel on one axis, and their weights.
struct MaskTap {
    int low, high;
    float weight_low, weight_high;

    MASKRCNN_HD float mix(float at_low, float at_high) const { return weight_low * at_low + weight_high * at_high; }
};

// One axis of a mask that is resized to its box.
struct MaskAxis {
    int64_t begin, end;  // the pixels that the mask can reach: first, and one past the last; none, where it has no area
    int last;            // entry of the padded mask

    // The box's side goes from `low` to `high`, which must be finite.
    MASKRCNN_HD MaskAxis(float low, float high, int64_t mask_size, bool aligned)
        : last(static_cast<int>(mask_size + 2 * kMaskPadding) - 1),
          low_(low),
          per_pixel_(0),
          entries_(static_cast<int>(mask_size)),
          aligned_(aligned) {
        if (aligned) {
            side_ = static_cast<double>(high) - low_;
            const double reach = side_ / (2 * entries_);  // half an entry beyond the box the padding is reached
            begin = whole(std::floor(low_ - reach - 0.5)) + 1;
            end = side_ > 0 ? whole(std::ceil(high + reach - 0.5)) : begin;
        } else {
            const float scale = static_cast<float>(static_cast<double>(last + 1) / mask_size);
            const float half = (high - low) * 0.5f * scale, center = (high + low) * 0.5f;
            begin = whole(center - half);
            end = whole(center + half) + 1;
            side_ = static_cast<double>(end - begin > 1 ? end - begin : 1);
            per_pixel_ = static_cast<float>(last + 1) / static_cast<float>(side_);
        }
    }

    // Of pixel `pixel`, from `begin` to before `end`.
    MASKRCNN_HD MaskTap tap(int64_t pixel) const {
        const double at = position(pixel);
        const double inside = at < 0 ? 0 : at;
        MaskTap tap;
        tap.low = static_cast<int>(inside) < last ? static_cast<int>(inside) : last;
        tap.high = tap.low + 1 < last ? tap.low + 1 : last;
        tap.weight_high = static_cast<float>(inside - tap.low);
        tap.weight_low = 1 - tap.weight_high;
        if (aligned_) tap.weight_high = 1 - tap.weight_low;  // now their sum is 1 exactly, as both are in 24 bits
        return tap;
    }

  private:
    // Among the entries of the padded mask.
    MASKRCNN_HD double position(int64_t pixel) const {
        if (aligned_) return (static_cast<double>(pixel) + 0.5 - low_) * entries_ / side_ + (kMaskPadding - 0.5);
        return std::fma(per_pixel_, static_cast<float>(pixel - begin) + 0.5f, -0.5f);
    }

    static MASKRCNN_HD int64_t whole(double value) {
        constexpr double kFar = 1e12;  // a number that is too large for an integer has no meaning as one
        return static_cast<int64_t>(value > kFar ? kFar : value > -kFar ? value : -kFar);
    }

    double low_, side_;  // of the box, in pixels; not aligned: of the whole pixels
    float per_pixel_;    // entries of the padded mask per pixel, not aligned
    int entries_;
    bool aligned_;
};

// Row `row` of the padded mask [mask_size, mask_size], interpolated along x. The value of a pixel is that of its two
// rows mixed: y.mix(interpolate_row(.., y.low, x), interpolate_row(.., y.high, x)).
MASKRCNN_HD float interpolate_row(const float* mask, int64_t mask_size, int64_t row, const MaskTap& x) {
    const int64_t r = row - kMaskPadding, low = x.low - kMaskPadding, high = x.high - kMaskPadding;
    if (r < 0 || r >= mask_size) return 0.0f;
    const float* entries = mask + r * mask_size;
    return x.mix(low >= 0 && low < mask_size ? entries[low] : 0.0f,
                 high >= 0 && high < mask_size ? entries[high] : 0.0f);
}

}  // namespace maskrcnn

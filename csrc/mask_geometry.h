// Where the pixels of a mask are that is enlarged into its box, and what they are: shared by the CPU and the CUDA
// kernels. It is F.interpolate(mode="bilinear", align_corners=False) on the padded mask, with the same rounding of
// positions (one fused multiply-add); values may differ in the last bit, which only a pixel on the threshold shows.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace maskrcnn {

constexpr int64_t kMaskPadding = 1;  // zeros around a mask, so that its outline can end inside the box

// The whole pixels of a box that has grown about its centre as its mask has by the padding.
struct PixelBox {
    int64_t x1, y1, x2, y2;  // from the first pixel to behind the last; none, where the box is upside down

    // The size that the mask is enlarged to.
    MASKRCNN_HD int64_t width() const { return x2 - x1 > 1 ? x2 - x1 : 1; }
    MASKRCNN_HD int64_t height() const { return y2 - y1 > 1 ? y2 - y1 : 1; }

    // The box's numbers must be finite.
    MASKRCNN_HD PixelBox(const float* box, int64_t mask_size) {
        const float scale = static_cast<float>(static_cast<double>(mask_size + 2 * kMaskPadding) / mask_size);
        grow(box[0], box[2], scale, &x1, &x2);
        grow(box[1], box[3], scale, &y1, &y2);
    }

    static MASKRCNN_HD bool is_finite(const float* box) {
        for (int i = 0; i < 4; ++i) {
            if (!(std::fabs(box[i]) <= kLargest)) return false;
        }
        return true;
    }

  private:
    static constexpr float kLargest = std::numeric_limits<float>::max();

    static MASKRCNN_HD void grow(float low, float high, float scale, int64_t* first, int64_t* end) {
        const float half = (high - low) * 0.5f * scale, center = (high + low) * 0.5f;
        *first = whole(center - half);
        *end = whole(center + half) + 1;
    }

    static MASKRCNN_HD int64_t whole(float value) {
        constexpr float kFar = 1e12f;  // a number that is too large for an integer has no meaning as one
        return static_cast<int64_t>(value > kFar ? kFar : value > -kFar ? value : -kFar);
    }
};

// The entries of the padded mask that a pixel lies between on one axis, and their weights.
struct MaskTap {
    int low, high;
    float weight_low, weight_high;

    MASKRCNN_HD float mix(float at_low, float at_high) const { return weight_low * at_low + weight_high * at_high; }
};

// One axis of a mask that is enlarged into a box of `box_size` pixels.
struct MaskAxis {
    float scale;
    int last;  // entry of the padded mask

    MASKRCNN_HD MaskAxis(int64_t mask_size, int64_t box_size)
        : scale(static_cast<float>(mask_size + 2 * kMaskPadding) / static_cast<float>(box_size)),
          last(static_cast<int>(mask_size + 2 * kMaskPadding) - 1) {}

    // Of pixel i, counted from the box's first.
    MASKRCNN_HD MaskTap tap(int64_t i) const {
        const float at = std::fma(scale, static_cast<float>(i) + 0.5f, -0.5f);
        const float position = at < 0.0f ? 0.0f : at;
        MaskTap tap;
        tap.low = static_cast<int>(position) < last ? static_cast<int>(position) : last;
        tap.high = tap.low + 1 < last ? tap.low + 1 : last;
        tap.weight_high = position - static_cast<float>(tap.low);
        tap.weight_low = 1 - tap.weight_high;
        return tap;
    }
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

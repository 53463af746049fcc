// From the network's small masks to COCO run lengths, without a mask of the picture's size.
//
// A mask is enlarged inside its own box, a column of pixels at a time as COCO counts them; where the value crosses the
// threshold a run ends. The arithmetic is that of F.interpolate(mode="bilinear", align_corners=False), operation by
// operation, so that the pixels are those of torchvision's paste_masks_in_image.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

namespace maskrcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kPadding = 1;  // zeros around a mask, so that its outline can end inside the box
constexpr int64_t kMostPixels = int64_t(1) << 31;

// Positions of the pixels start .. stop of an axis, enlarged from `mask_size` to `box_size`: the entries of the mask
// below and above, and the weights of both.
struct AxisSamples {
    std::vector<int> low, high;
    std::vector<float> weight_low, weight_high;

    void compute(int64_t mask_size, int64_t box_size, int64_t start, int64_t stop) {
        const float scale = static_cast<float>(mask_size) / static_cast<float>(box_size);
        const int last = static_cast<int>(mask_size) - 1;
        low.clear(), high.clear(), weight_low.clear(), weight_high.clear();
        for (int64_t i = start; i < stop; ++i) {
            const float position = std::max(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
            const int below = std::min(static_cast<int>(position), last);
            low.push_back(below);
            high.push_back(std::min(below + 1, last));
            weight_high.push_back(position - static_cast<float>(below));
            weight_low.push_back(1 - weight_high.back());
        }
    }

    int64_t size() const { return static_cast<int64_t>(low.size()); }
};

// Run lengths in column order, background first, written as COCO writes them (pycocotools' rleToString): differences to
// the run before the last, five bits a character.
class RunLengths {
  public:
    explicit RunLengths(int64_t pixels) : pixels_(pixels) {}

    // The pixels begin .. end belong to the cell; calls come in rising order.
    void add(int64_t begin, int64_t end) {
        if (begin == end_ && !counts_.empty()) {  // goes on from the bottom of the column before
            counts_.back() += end - begin;
        } else {
            counts_.push_back(begin - end_);
            counts_.push_back(end - begin);
        }
        end_ = end;
    }

    std::string text() {
        if (end_ < pixels_) counts_.push_back(pixels_ - end_);
        std::string text;
        for (size_t i = 0; i < counts_.size(); ++i) {
            int64_t value = i > 2 ? counts_[i] - counts_[i - 2] : counts_[i];
            for (bool more = true; more;) {
                int64_t bits = value & 0x1f;
                value >>= 5;
                more = bits & 0x10 ? value != -1 : value != 0;
                text.push_back(static_cast<char>((more ? bits | 0x20 : bits) + 48));
            }
        }
        return text;
    }

  private:
    int64_t pixels_, end_ = 0;
    std::vector<int64_t> counts_;
};

// The whole pixels of a box that has grown about its centre as its mask has by the padding.
struct PixelBox {
    int64_t x1, y1, width, height;

    PixelBox(const float* box, int64_t mask_size) {
        const float scale = static_cast<float>(static_cast<double>(mask_size + 2 * kPadding) / mask_size);
        const auto [left, right] = grow(box[0], box[2], scale);
        const auto [top, bottom] = grow(box[1], box[3], scale);
        x1 = left, y1 = top;
        width = std::max<int64_t>(right - left + 1, 1);
        height = std::max<int64_t>(bottom - top + 1, 1);
    }

  private:
    static std::pair<int64_t, int64_t> grow(float low, float high, float scale) {
        const float half = (high - low) * 0.5f * scale, center = (high + low) * 0.5f;
        constexpr float kFar = 1e12f;  // a number that is too large for an integer has no meaning as one
        return {static_cast<int64_t>(std::clamp(center - half, -kFar, kFar)),
                static_cast<int64_t>(std::clamp(center + half, -kFar, kFar))};
    }
};

class Encoder {
  public:
    Encoder(int64_t mask_size, int64_t height, int64_t width, float threshold)
        : mask_size_(mask_size), height_(height), width_(width), threshold_(threshold) {}

    std::string encode(const float* mask, const float* box) {
        RunLengths runs(height_ * width_);
        const PixelBox b(box, mask_size_);
        const int64_t left = std::max<int64_t>(b.x1, 0), right = std::min(b.x1 + b.width, width_);
        const int64_t top = std::max<int64_t>(b.y1, 0), bottom = std::min(b.y1 + b.height, height_);
        if (left >= right || top >= bottom) return runs.text();
        const int64_t padded = mask_size_ + 2 * kPadding;
        columns_.compute(padded, b.width, left - b.x1, right - b.x1);
        rows_.compute(padded, b.height, top - b.y1, bottom - b.y1);
        std::vector<float> line(padded, 0.0f);  // a column of the mask, interpolated along x; its ends are padding
        for (int64_t x = 0; x < columns_.size(); ++x) {
            for (int64_t r = 0; r < mask_size_; ++r) {
                const float* row = mask + r * mask_size_;
                line[r + kPadding] = columns_.weight_low[x] * at(row, columns_.low[x]) +
                                     columns_.weight_high[x] * at(row, columns_.high[x]);
            }
            add_column(line.data(), (left + x) * height_ + top, runs);
        }
        return runs.text();
    }

  private:
    float at(const float* row, int64_t padded_index) const {
        const int64_t i = padded_index - kPadding;
        return i >= 0 && i < mask_size_ ? row[i] : 0.0f;
    }

    void add_column(const float* line, int64_t first_pixel, RunLengths& runs) const {
        int64_t begin = -1;
        for (int64_t y = 0; y < rows_.size(); ++y) {
            const float value = rows_.weight_low[y] * line[rows_.low[y]] + rows_.weight_high[y] * line[rows_.high[y]];
            const bool inside = value > threshold_;
            if (inside && begin < 0) begin = y;
            if (!inside && begin >= 0) {
                runs.add(first_pixel + begin, first_pixel + y);
                begin = -1;
            }
        }
        if (begin >= 0) runs.add(first_pixel + begin, first_pixel + rows_.size());
    }

    int64_t mask_size_, height_, width_;
    float threshold_;
    AxisSamples columns_, rows_;
};

std::tuple<Tensor, Tensor> masks_to_rle(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                                        double threshold) {
    const int64_t count = masks.size(0);
    STD_TORCH_CHECK(masks.dim() == 3 && masks.size(1) == masks.size(2) && masks.size(1) > 0 && masks.is_contiguous() &&
                        masks.scalar_type() == ScalarType::Float,
                    "masks must be contiguous float32 [K, M, M]");
    STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == count && boxes.size(1) == 4 && boxes.is_contiguous() &&
                        boxes.scalar_type() == ScalarType::Float,
                    "boxes must be contiguous float32 [K, 4]");
    STD_TORCH_CHECK(height > 0 && width > 0 && height < kMostPixels && width < kMostPixels, "size: ", height, " x ",
                    width, " pixels; expected 1 x 1 or more");
    const int64_t mask_size = masks.size(1);
    const auto* mask = static_cast<const float*>(masks.const_data_ptr());
    const auto* box = static_cast<const float*>(boxes.const_data_ptr());
    for (int64_t i = 0; i < 4 * count; ++i) {
        STD_TORCH_CHECK(std::isfinite(box[i]), "boxes: a coordinate of box ", i / 4, " is not finite");
    }
    std::vector<std::string> texts(count);
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        Encoder encoder(mask_size, height, width, static_cast<float>(threshold));
        for (int64_t k = begin; k < end; ++k) texts[k] = encoder.encode(mask + k * mask_size * mask_size, box + 4 * k);
    });
    Tensor ends = torch::stable::empty({count}, ScalarType::Long);
    auto* end_of = static_cast<int64_t*>(ends.mutable_data_ptr());
    int64_t total = 0;
    for (int64_t k = 0; k < count; ++k) end_of[k] = total += static_cast<int64_t>(texts[k].size());
    Tensor bytes = torch::stable::empty({total}, ScalarType::Byte);
    auto* out = static_cast<char*>(bytes.mutable_data_ptr());
    for (const std::string& text : texts) out = std::copy(text.begin(), text.end(), out);
    return {bytes, ends};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) { m.impl("masks_to_rle", TORCH_BOX(&maskrcnn::masks_to_rle)); }

// Encodes the network's small masks as COCO run lengths, without a mask of the picture's size.
//
// A mask is resized within its box, one column of pixels at a time, in COCO's order; a run ends where the value crosses
// the threshold. mask_geometry.h determines the entries of the mask that a pixel reads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../mask_geometry.h"

namespace maskrcnn {
namespace {

// Run lengths in column order, background first.
class RunLengths {
  public:
    explicit RunLengths(int64_t pixels) : pixels_(pixels) {}

    // Pixels begin .. end belong to the cell; must be called in ascending order.
    void add(int64_t begin, int64_t end) {
        if (begin == end_ && !counts_.empty()) {  // continues from the bottom of the previous column
            counts_.back() += end - begin;
        } else {
            counts_.push_back(begin - end_);
            counts_.push_back(end - begin);
        }
        end_ = end;
    }

    std::vector<int64_t> finish() {
        if (end_ < pixels_) counts_.push_back(pixels_ - end_);
        return std::move(counts_);
    }

  private:
    int64_t pixels_, end_ = 0;
    std::vector<int64_t> counts_;
};

class Encoder {
  public:
    Encoder(int64_t mask_size, int64_t height, int64_t width, float threshold, bool aligned)
        : mask_size_(mask_size), height_(height), width_(width), threshold_(threshold), aligned_(aligned) {}

    std::vector<int64_t> encode(const float* mask, const float* box) {
        RunLengths runs(height_ * width_);
        const MaskAxis columns(box[0], box[2], mask_size_, aligned_), rows(box[1], box[3], mask_size_, aligned_);
        const int64_t left = std::max<int64_t>(columns.begin, 0), right = std::min(columns.end, width_);
        const int64_t top = std::max<int64_t>(rows.begin, 0), bottom = std::min(rows.end, height_);
        if (left >= right || top >= bottom) return runs.finish();
        rows_.clear();
        for (int64_t y = top; y < bottom; ++y) rows_.push_back(rows.tap(y));
        line_.resize(rows.last + 1);
        for (int64_t x = left; x < right; ++x) {
            const MaskTap tap = columns.tap(x);
            for (int r = 0; r <= rows.last; ++r) line_[r] = interpolate_row(mask, mask_size_, r, tap);
            add_column(x * height_ + top, runs);
        }
        return runs.finish();
    }

  private:
    void add_column(int64_t first_pixel, RunLengths& runs) const {
        int64_t begin = -1;
        const auto height = static_cast<int64_t>(rows_.size());
        for (int64_t y = 0; y < height; ++y) {
            const bool inside = rows_[y].mix(line_[rows_[y].low], line_[rows_[y].high]) > threshold_;
            if (inside && begin < 0) begin = y;
            if (!inside && begin >= 0) {
                runs.add(first_pixel + begin, first_pixel + y);
                begin = -1;
            }
        }
        if (begin >= 0) runs.add(first_pixel + begin, first_pixel + height);
    }

    int64_t mask_size_, height_, width_;
    float threshold_;
    bool aligned_;
    std::vector<MaskTap> rows_;
    std::vector<float> line_;  // a column of the padded mask, interpolated along x
};

// Concatenates lists to one tensor, and returns where each ends.
template <typename Element, typename List>
std::tuple<Tensor, Tensor> join(const std::vector<List>& lists, ScalarType type) {
    Tensor ends = torch::stable::empty({static_cast<int64_t>(lists.size())}, ScalarType::Long);
    auto* end = static_cast<int64_t*>(ends.mutable_data_ptr());
    int64_t total = 0;
    for (const List& list : lists) *end++ = total += static_cast<int64_t>(list.size());
    Tensor joined = torch::stable::empty({total}, type);
    auto* out = static_cast<Element*>(joined.mutable_data_ptr());
    for (const List& list : lists) out = std::copy(list.begin(), list.end(), out);
    return {joined, ends};
}

std::tuple<Tensor, Tensor> mask_runs(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                                     double threshold, bool aligned) {
    check_mask_runs(masks, boxes, height, width);
    const int64_t count = masks.size(0), mask_size = masks.size(1);
    const auto* mask = static_cast<const float*>(masks.const_data_ptr());
    const auto* box = static_cast<const float*>(boxes.const_data_ptr());
    for (int64_t k = 0; k < count; ++k) {
        STD_TORCH_CHECK(is_finite_box(box + 4 * k), "boxes: a coordinate of box ", k, " is not finite");
    }
    std::vector<std::vector<int64_t>> runs(count);
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        Encoder encoder(mask_size, height, width, static_cast<float>(threshold), aligned);
        for (int64_t k = begin; k < end; ++k) runs[k] = encoder.encode(mask + k * mask_size * mask_size, box + 4 * k);
    });
    return join<int64_t>(runs, ScalarType::Long);
}

// COCO's text of run lengths (pycocotools' rleToString): differences to the run before the last, 5 bits per character.
std::string coco_text(const int64_t* runs, int64_t count) {
    std::string text;
    for (int64_t i = 0; i < count; ++i) {
        int64_t value = i > 2 ? runs[i] - runs[i - 2] : runs[i];
        for (bool more = true; more;) {
            int64_t bits = value & 0x1f;
            value >>= 5;
            more = bits & 0x10 ? value != -1 : value != 0;
            text.push_back(static_cast<char>((more ? bits | 0x20 : bits) + 48));
        }
    }
    return text;
}

std::tuple<Tensor, Tensor> encode_runs(const Tensor& runs, const Tensor& ends) {
    check_index(runs, "runs", runs.numel());
    check_index(ends, "ends", ends.numel());
    const auto* run = static_cast<const int64_t*>(runs.const_data_ptr());
    const auto* end = static_cast<const int64_t*>(ends.const_data_ptr());
    std::vector<std::string> texts(ends.numel());
    int64_t start = 0;
    for (std::string& text : texts) {
        STD_TORCH_CHECK(start <= *end && *end <= runs.numel(), "ends: ", *end, " after ", start, " of ", runs.numel(),
                        " runs");
        text = coco_text(run + start, *end - start);
        start = *end++;
    }
    return join<char>(texts, ScalarType::Byte);
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) {
    m.impl("mask_runs", TORCH_BOX(&maskrcnn::mask_runs));
    m.impl("encode_runs", TORCH_BOX(&maskrcnn::encode_runs));
}

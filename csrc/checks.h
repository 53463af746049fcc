// Checks of the kernels' arguments on any device. Values (indices in range, no NaN) are only checked on the CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace maskrcnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_16_bit(ScalarType type) { return type == ScalarType::BFloat16 || type == ScalarType::Half; }

inline void check_floating(const Tensor& tensor, const char* name) {
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float, name, " must be float32 or float64");
}

inline void check_boxes(const Tensor& boxes, const char* name, int64_t columns = 4) {
    STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == columns && boxes.is_contiguous(), name,
                    " must be contiguous [N, ", columns, "]");
    check_floating(boxes, name);
}

inline void check_index(const Tensor& index, const char* name, int64_t count) {
    STD_TORCH_CHECK(
        index.dim() == 1 && index.size(0) == count && index.is_contiguous() && index.scalar_type() == ScalarType::Long,
        name, " must be contiguous int64 [", count, "]");
}

inline void check_same_type(const Tensor& a, const char* name, const Tensor& b, const char* other) {
    STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), name, " must have the dtype of ", other);
}

// A kernel that gets memory of another device would access invalid addresses.
inline void check_same_device(const Tensor& a, const char* name, const Tensor& b, const char* other) {
    STD_TORCH_CHECK(a.is_cpu() == b.is_cpu() && (a.is_cpu() || a.get_device_index() == b.get_device_index()), name,
                    " must be on the device of ", other);
}

inline void check_nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs) {
    const int64_t count = boxes.dim() == 2 ? boxes.size(0) : 0;
    check_boxes(boxes, "boxes");
    STD_TORCH_CHECK(count < std::numeric_limits<int32_t>::max(), "boxes: ", count, " of them are too many");
    STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == count && scores.is_contiguous(),
                    "scores must be contiguous [", count, "]");
    check_floating(scores, "scores");
    check_same_device(scores, "scores", boxes, "boxes");
    if (!idxs) return;
    check_index(*idxs, "idxs", count);
    check_same_device(*idxs, "idxs", boxes, "boxes");
}

// The numbers of anchors and targets of the images must add up to the numbers of anchors and targets.
inline void check_counts(const std::vector<int64_t>& counts, const char* name, const Tensor& boxes, const char* other) {
    int64_t left = boxes.size(0);
    for (const int64_t count : counts) {
        STD_TORCH_CHECK(count >= 0 && count <= left, name, ": ", count, " of the ", left, " ", other, " that are left");
        left -= count;
    }
    STD_TORCH_CHECK(left == 0, name, ": ", left, " of the ", boxes.size(0), " ", other, " belong to no image");
}

inline void check_match_boxes(const Tensor& anchors, const Tensor& targets, const std::vector<int64_t>& anchor_counts,
                              const std::vector<int64_t>& target_counts) {
    check_boxes(anchors, "anchors");
    check_boxes(targets, "targets");
    check_same_type(targets, "targets", anchors, "anchors");
    check_same_device(targets, "targets", anchors, "anchors");
    STD_TORCH_CHECK(anchor_counts.size() == target_counts.size(), "anchor_counts has ", anchor_counts.size(),
                    " images, target_counts ", target_counts.size());
    check_counts(anchor_counts, "anchor_counts", anchors, "anchors");
    check_counts(target_counts, "target_counts", targets, "targets");
}

constexpr int64_t kMost = 1 << 20;  // pixels or bins of one axis; keeps products of two sizes far from overflow

inline void check_sides(int64_t height, int64_t width, const char* name) {
    STD_TORCH_CHECK(height > 0 && width > 0 && height < kMost && width < kMost, name, ": ", height, " x ", width,
                    "; expected 1 to ", kMost - 1, " a side");
}

inline void check_crop_labels(const Tensor& planes, const Tensor& rois, const Tensor& plane, const Tensor& ids,
                              int64_t size) {
    STD_TORCH_CHECK(planes.dim() == 3 && planes.is_contiguous() && planes.scalar_type() == ScalarType::Int,
                    "planes must be contiguous int32 [P, H, W]");
    check_boxes(rois, "rois");
    STD_TORCH_CHECK(rois.scalar_type() == ScalarType::Float, "rois must be float32");
    check_index(plane, "plane", rois.size(0));
    check_index(ids, "ids", rois.size(0));
    check_same_device(rois, "rois", planes, "planes");
    check_same_device(plane, "plane", planes, "planes");
    check_same_device(ids, "ids", planes, "planes");
    check_sides(size, size, "size");
    if (rois.size(0) > 0) check_sides(planes.size(1), planes.size(2), "planes");
}

// Coordinates are float32, also over maps of 16 bits, and float64 over maps of float64.
inline void check_rois(const Tensor& rois, const Tensor& level, const Tensor& maps, const char* name) {
    const ScalarType type = maps.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || is_16_bit(type), name,
                    " must be float16, bfloat16, float32 or float64");
    check_boxes(rois, "rois", 5);
    STD_TORCH_CHECK(rois.scalar_type() == (is_16_bit(type) ? ScalarType::Float : type), "rois must be ",
                    type == ScalarType::Double ? "float64" : "float32", " over such ", name);
    check_index(level, "level", rois.size(0));
    check_same_device(rois, "rois", maps, name);
    check_same_device(level, "level", maps, name);
}

inline void check_sampling_ratio(int64_t sampling_ratio) {
    STD_TORCH_CHECK(sampling_ratio < kMost, "sampling_ratio: ", sampling_ratio, "; expected less than ", kMost);
}

inline void check_roi_align(const std::vector<Tensor>& features, const Tensor& rois, const Tensor& level, size_t scales,
                            int64_t size_h, int64_t size_w, int64_t sampling_ratio) {
    STD_TORCH_CHECK(!features.empty() && features.size() == scales, "scales: one for each feature map");
    for (const auto& map : features) {
        STD_TORCH_CHECK(map.dim() == 4 && map.is_contiguous(), "features must be contiguous [B, H, W, C]");
        check_same_type(map, "features", features[0], "one another");
        check_same_device(map, "features", features[0], "one another");
        STD_TORCH_CHECK(map.size(0) == features[0].size(0) && map.size(3) == features[0].size(3),
                        "features must have the same batch and channels");
        check_sides(map.size(1), map.size(2), "features");
    }
    check_sides(size_h, size_w, "output_size");
    check_sampling_ratio(sampling_ratio);
    check_rois(rois, level, features[0], "features");
}

inline void check_roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level, size_t scales,
                                     const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                     int64_t sampling_ratio) {
    STD_TORCH_CHECK(grad.dim() == 4 && grad.is_contiguous() && rois.dim() == 2 && grad.size(0) == rois.size(0),
                    "grad must be contiguous [K, size_h, size_w, C]");
    STD_TORCH_CHECK(scales > 0 && heights.size() == scales && widths.size() == scales,
                    "heights, widths, scales differ");
    for (size_t l = 0; l < scales; ++l) check_sides(heights[l], widths[l], "features");
    check_sides(grad.size(1), grad.size(2), "grad's bins");
    check_sampling_ratio(sampling_ratio);
    check_rois(rois, level, grad, "grad");
}

inline void check_mask_runs(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width) {
    constexpr int64_t kMostPixels = int64_t(1) << 31;  // of one side
    STD_TORCH_CHECK(masks.dim() == 3 && masks.size(1) == masks.size(2) && masks.size(1) > 0 && masks.size(1) < kMost &&
                        masks.is_contiguous() && masks.scalar_type() == ScalarType::Float,
                    "masks must be contiguous float32 [K, M, M]");
    check_boxes(boxes, "boxes");
    STD_TORCH_CHECK(boxes.size(0) == masks.size(0) && boxes.scalar_type() == ScalarType::Float,
                    "boxes must be float32 [", masks.size(0), ", 4]");
    check_same_device(boxes, "boxes", masks, "masks");
    STD_TORCH_CHECK(height > 0 && width > 0 && height < kMostPixels && width < kMostPixels, "size: ", height, " x ",
                    width, " pixels; expected 1 x 1 or more");
}

inline void check_maps(const std::vector<Tensor>& maps, const char* name, int64_t channels) {
    STD_TORCH_CHECK(!maps.empty(), name, " must hold at least one map");
    STD_TORCH_CHECK(channels > 0 && channels % 16 == 0, name, " must have a multiple of 16 channels");
    for (const Tensor& map : maps) {
        STD_TORCH_CHECK(
            map.dim() == 4 && map.is_contiguous() && map.size(3) == channels && map.scalar_type() == ScalarType::Float,
            name, " must be contiguous float32 [B, H, W, ", channels, "]");
        check_same_device(map, name, maps[0], name);
    }
}

inline void check_conv3x3(const std::vector<Tensor>& maps, const Tensor& weight, const std::optional<Tensor>& bias,
                          bool transposed) {
    STD_TORCH_CHECK(
        weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.scalar_type() == ScalarType::Float,
        "weight must be float32 [K, C, 3, 3]");
    const int64_t inputs = weight.size(transposed ? 0 : 1), outputs = weight.size(transposed ? 1 : 0);
    check_maps(maps, "maps", inputs);
    check_same_device(weight, "weight", maps[0], "maps");
    STD_TORCH_CHECK(outputs > 0 && outputs % 16 == 0, "weight must have multiples of 16 channels");
    if (bias) {
        STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == outputs && bias->is_contiguous() &&
                            bias->scalar_type() == ScalarType::Float,
                        "bias must be contiguous float32 [", outputs, "]");
        check_same_device(*bias, "bias", maps[0], "maps");
    }
}

inline void check_conv3x3_weight_gradient(const std::vector<Tensor>& maps, const std::vector<Tensor>& grads) {
    STD_TORCH_CHECK(!maps.empty() && maps.size() == grads.size() && maps[0].dim() == 4 && grads[0].dim() == 4,
                    "maps and grads must be as many, [B, H, W, C] and [B, H, W, K]");
    check_maps(maps, "maps", maps[0].size(3));
    check_maps(grads, "grads", grads[0].size(3));
    for (size_t i = 0; i < maps.size(); ++i) {
        for (int axis = 0; axis < 3; ++axis) {
            STD_TORCH_CHECK(maps[i].size(axis) == grads[i].size(axis), "grads must have the B, H and W of maps");
        }
    }
    check_same_device(grads[0], "grads", maps[0], "maps");
}

// Weights and statistics are float32, also over maps of 16 bits, and float64 over maps of float64.
inline void check_group_norm_parameter(const Tensor& tensor, const char* name, std::vector<int64_t> shape,
                                       const Tensor& maps) {
    bool fits = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.is_contiguous();
    for (size_t axis = 0; fits && axis < shape.size(); ++axis) fits = tensor.size(axis) == shape[axis];
    const ScalarType type = maps.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(fits && tensor.scalar_type() == type, name,
                    " must be contiguous float32 (float64 over float64 maps)", " of ", shape.size(),
                    " dimensions that fit the maps");
    check_same_device(tensor, name, maps, "maps");
}

inline void check_like_maps(const Tensor& tensor, const char* name, const Tensor& maps) {
    bool fits = tensor.dim() == 4 && tensor.is_contiguous();
    for (int axis = 0; fits && axis < 4; ++axis) fits = tensor.size(axis) == maps.size(axis);
    STD_TORCH_CHECK(fits, name, " must be contiguous, of the shape of maps");
    check_same_type(tensor, name, maps, "maps");
    check_same_device(tensor, name, maps, "maps");
}

inline void check_group_norm(const Tensor& maps, const Tensor& weight, const Tensor& bias,
                             const std::optional<Tensor>& statistics, const std::optional<Tensor>& residual,
                             int64_t groups) {
    const ScalarType type = maps.scalar_type();
    STD_TORCH_CHECK(maps.dim() == 4 && maps.is_contiguous() &&
                        (type == ScalarType::Float || type == ScalarType::Double || is_16_bit(type)),
                    "maps must be contiguous [B, H, W, C], float16, bfloat16, float32 or float64");
    STD_TORCH_CHECK(groups > 0 && maps.size(3) > 0 && maps.size(3) % groups == 0, "groups: ", groups, " of ",
                    maps.size(3), " channels; expected a divisor");
    check_group_norm_parameter(weight, "weight", {maps.size(3)}, maps);
    check_group_norm_parameter(bias, "bias", {maps.size(3)}, maps);
    if (statistics) check_group_norm_parameter(*statistics, "statistics", {2, maps.size(0), groups}, maps);
    if (residual) check_like_maps(*residual, "residual", maps);
}

inline void check_group_norm_backward(const Tensor& grad, const Tensor& maps, const Tensor& weight, const Tensor& bias,
                                      const Tensor& statistics) {
    STD_TORCH_CHECK(statistics.dim() == 3, "statistics must be [2, B, groups]");
    check_group_norm(maps, weight, bias, statistics, std::nullopt, statistics.size(2));
    check_like_maps(grad, "grad", maps);
}

}  // namespace maskrcnn

// What the kernels demand of their arguments, whatever the device. Values (indices in range, no NaN) can be looked at
// on the CPU alone, and are checked there.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace maskrcnn {

inline void check_floating(const torch::stable::Tensor& tensor, const char* name) {
    const auto type = tensor.scalar_type();
    STD_TORCH_CHECK(type == torch::headeronly::ScalarType::Double || type == torch::headeronly::ScalarType::Float, name,
                    " must be float32 or float64");
}

inline void check_boxes(const torch::stable::Tensor& boxes, const char* name, int64_t columns = 4) {
    STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == columns && boxes.is_contiguous(), name,
                    " must be contiguous [N, ", columns, "]");
    check_floating(boxes, name);
}

inline void check_index(const torch::stable::Tensor& index, const char* name, int64_t count) {
    STD_TORCH_CHECK(index.dim() == 1 && index.size(0) == count && index.is_contiguous() &&
                        index.scalar_type() == torch::headeronly::ScalarType::Long,
                    name, " must be contiguous int64 [", count, "]");
}

inline void check_same_type(const torch::stable::Tensor& a, const char* name, const torch::stable::Tensor& b,
                            const char* other) {
    STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), name, " must have the dtype of ", other);
}

inline void check_nms(const torch::stable::Tensor& boxes, const torch::stable::Tensor& group) {
    check_boxes(boxes, "boxes");
    check_index(group, "group", boxes.size(0));
}

inline void check_match_boxes(const torch::stable::Tensor& anchors, const torch::stable::Tensor& targets) {
    check_boxes(anchors, "anchors");
    check_boxes(targets, "targets");
    check_same_type(targets, "targets", anchors, "anchors");
}

inline void check_crop_labels(const torch::stable::Tensor& planes, const torch::stable::Tensor& rois,
                              const torch::stable::Tensor& plane, const torch::stable::Tensor& ids, int64_t size) {
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(planes.dim() == 3 && planes.is_contiguous() && planes.scalar_type() == ScalarType::Int,
                    "planes must be contiguous int32 [P, H, W]");
    check_boxes(rois, "rois");
    STD_TORCH_CHECK(rois.scalar_type() == ScalarType::Float, "rois must be float32");
    check_index(plane, "plane", rois.size(0));
    check_index(ids, "ids", rois.size(0));
    STD_TORCH_CHECK(size > 0, "size must be above 0");
}

constexpr int64_t kMost = 1 << 20;  // pixels or bins of one axis; keeps products of two sizes far from overflow

inline void check_map_size(int64_t height, int64_t width) {
    STD_TORCH_CHECK(height > 0 && width > 0 && height < kMost && width < kMost, "features: a map of ", height, " x ",
                    width, " pixels; expected 1 x 1 or more");
}

inline void check_rois(const torch::stable::Tensor& rois, const torch::stable::Tensor& level) {
    check_boxes(rois, "rois", 5);
    check_index(level, "level", rois.size(0));
}

inline void check_roi_align(const std::vector<torch::stable::Tensor>& features, const torch::stable::Tensor& rois,
                            const torch::stable::Tensor& level, size_t scales, int64_t size_h, int64_t size_w,
                            int64_t sampling_ratio) {
    STD_TORCH_CHECK(!features.empty() && features.size() == scales, "scales: one for each feature map");
    for (const auto& map : features) {
        STD_TORCH_CHECK(map.dim() == 4 && map.is_contiguous(), "features must be contiguous [B, H, W, C]");
        check_same_type(map, "features", rois, "rois");
        STD_TORCH_CHECK(map.size(0) == features[0].size(0) && map.size(3) == features[0].size(3),
                        "features must have the same batch and channels");
        check_map_size(map.size(1), map.size(2));
    }
    STD_TORCH_CHECK(size_h > 0 && size_w > 0 && size_h < kMost && size_w < kMost, "output_size must be above 0");
    STD_TORCH_CHECK(sampling_ratio < kMost, "sampling_ratio is ", sampling_ratio);
    check_rois(rois, level);
}

inline void check_roi_align_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& rois,
                                     const torch::stable::Tensor& level, size_t scales,
                                     const std::vector<int64_t>& heights, const std::vector<int64_t>& widths) {
    STD_TORCH_CHECK(grad.dim() == 4 && grad.is_contiguous() && grad.size(0) == rois.size(0), "grad must be contiguous ",
                    "[K, size_h, size_w, C]");
    check_same_type(rois, "rois", grad, "grad");
    STD_TORCH_CHECK(scales > 0 && heights.size() == scales && widths.size() == scales,
                    "heights, widths, scales differ");
    for (size_t l = 0; l < scales; ++l) check_map_size(heights[l], widths[l]);
    check_rois(rois, level);
}

}  // namespace maskrcnn

// The schemas of all kernels. CPU implementations are in cpu/, CUDA ones in cuda/, autograd and fake
// kernels in Python beside each op's reference.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(maskrcnn, m) {
    // boxes [N, 4], scores [N], idxs int64 [N] (the group of each box; none: one group) -> int64 [N], the boxes'
    // indices, highest score first; and bool [N], whether each of them, in that order, is kept
    m.def("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> (Tensor, Tensor)");
    // features[l] [B, H_l, W_l, C], rois [K, 5], level [K] -> [K, size_h, size_w, C] in the features' dtype
    m.def(
        "roi_align(Tensor[] features, Tensor rois, Tensor level, float[] scales, int size_h, int size_w, "
        "int sampling_ratio, bool aligned) -> Tensor");
    // grad [K, size_h, size_w, C] -> gradients of the features, of sizes B x heights[l] x widths[l] x C, in its dtype
    m.def(
        "roi_align_backward(Tensor grad, Tensor rois, Tensor level, float[] scales, int batch, int[] heights, "
        "int[] widths, int sampling_ratio, bool aligned, bool deterministic) -> Tensor[]");
    // anchors [A, 4], targets [G, 4], the numbers of both per image -> matches int64 [A]
    m.def(
        "match_boxes(Tensor anchors, Tensor targets, int[] anchor_counts, int[] target_counts, float high, float low, "
        "bool allow_low_quality) -> Tensor");
    // planes int32 [P, H, W], rois [K, 4], plane int64 [K], ids int64 [K] -> float32 [K, size, size]
    m.def(
        "crop_labels(Tensor planes, Tensor rois, Tensor plane, Tensor ids, int size, bool binary, bool aligned) -> "
        "Tensor");
    // masks [K, M, M], boxes [K, 4] -> the concatenated run lengths of all masks, int64, column by column, background
    // first, and where each mask's end, int64 [K]
    m.def(
        "mask_runs(Tensor masks, Tensor boxes, int height, int width, float threshold, bool aligned) -> (Tensor, "
        "Tensor)");
    // results of mask_runs, on the CPU -> COCO's texts, concatenated, uint8, and where each ends, int64 [K]
    m.def("encode_runs(Tensor runs, Tensor ends) -> (Tensor, Tensor)");
    // maps[l] [B, H_l, W_l, C], weight [K, C, 3, 3] of any strides, bias [K] -> [B, H_l, W_l, K]; transposed: maps of K
    // channels -> of C, the adjoint
    m.def("conv3x3(Tensor[] maps, Tensor weight, Tensor? bias, bool transposed) -> Tensor[]");
    // maps[l] [B, H_l, W_l, C], grads[l] [B, H_l, W_l, K] -> gradient of the weight, [K, 3, 3, C]
    m.def("conv3x3_weight_gradient(Tensor[] maps, Tensor[] grads) -> Tensor");
    // maps [B, H, W, C], weight and bias [C], statistics [2, B, groups] (means and variances; none: of the maps
    // themselves), residual [B, H, W, C] (added before the ReLU) -> the normalized maps, and the statistics
    m.def(
        "group_norm(Tensor maps, Tensor weight, Tensor bias, Tensor? statistics, Tensor? residual, int groups, "
        "float eps, bool relu) -> (Tensor, Tensor)");
    // grad [B, H, W, C] -> gradients of maps, weight and bias; relu: of a result without residual; given: the
    // statistics are constants
    m.def(
        "group_norm_backward(Tensor grad, Tensor maps, Tensor weight, Tensor bias, Tensor statistics, float eps, "
        "bool relu, bool given) -> (Tensor, Tensor, Tensor)");
}

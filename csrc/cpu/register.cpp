// Gives PyTorch the CPU kernels that were compiled for this processor's instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "instruction_set.h"

using torch::stable::Tensor;

#define MASKRCNN_DECLARE(set)                                                                                       \
    namespace maskrcnn {                                                                                            \
    namespace set {                                                                                                 \
    std::tuple<Tensor, Tensor> nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,    \
                                   double threshold);                                                               \
    Tensor roi_align(std::vector<Tensor> features, const Tensor& rois, const Tensor& level,                         \
                     std::vector<double> scales, int64_t size_h, int64_t size_w, int64_t sampling_ratio,            \
                     bool aligned);                                                                                 \
    std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& level,             \
                                           std::vector<double> scales, int64_t batch, std::vector<int64_t> heights, \
                                           std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned,       \
                                           bool deterministic);                                                     \
    std::vector<Tensor> conv3x3(const std::vector<Tensor>& maps, const Tensor& weight,                              \
                                const std::optional<Tensor>& bias, bool transposed);                                \
    Tensor conv3x3_weight_gradient(const std::vector<Tensor>& maps, const std::vector<Tensor>& grads);              \
    std::tuple<Tensor, Tensor> group_norm(const Tensor& maps, const Tensor& weight, const Tensor& bias,             \
                                          const std::optional<Tensor>& statistics,                                  \
                                          const std::optional<Tensor>& residual, int64_t groups, double eps,        \
                                          bool relu);                                                               \
    std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad, const Tensor& maps,                  \
                                                           const Tensor& weight, const Tensor& bias,                \
                                                           const Tensor& statistics, double eps, bool relu,         \
                                                           bool given);                                             \
    }                                                                                                               \
    }

MASKRCNN_DECLARE(baseline)
#ifdef __x86_64__
MASKRCNN_DECLARE(avx2)
MASKRCNN_DECLARE(avx512)
#define MASKRCNN_BEST(op)                                                                \
    (maskrcnn::instruction_set() == maskrcnn::kAvx512 ? TORCH_BOX(&maskrcnn::avx512::op) \
     : maskrcnn::instruction_set() == maskrcnn::kAvx2 ? TORCH_BOX(&maskrcnn::avx2::op)   \
                                                      : TORCH_BOX(&maskrcnn::baseline::op))
#else
#define MASKRCNN_BEST(op) TORCH_BOX(&maskrcnn::baseline::op)
#endif

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) {
    m.impl("nms", MASKRCNN_BEST(nms));
    m.impl("roi_align", MASKRCNN_BEST(roi_align));
    m.impl("roi_align_backward", MASKRCNN_BEST(roi_align_backward));
    m.impl("group_norm", MASKRCNN_BEST(group_norm));
    m.impl("group_norm_backward", MASKRCNN_BEST(group_norm_backward));
    m.impl("conv3x3", MASKRCNN_BEST(conv3x3));
    m.impl("conv3x3_weight_gradient", MASKRCNN_BEST(conv3x3_weight_gradient));
}

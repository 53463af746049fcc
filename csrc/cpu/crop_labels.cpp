// Mask targets cropped from label planes: RoIAlign of each cell's mask without making the mask.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <vector>

#include "../checks.h"
#include "axis_taps.h"

namespace maskrcnn {
namespace {

void crop(const int32_t* plane, int width, int64_t id, const AxisTaps<float>& rows, const AxisTaps<float>& columns,
          int size, bool binary, float* out) {
    for (int y = 0; y < size; ++y) {
        for (int x = 0; x < size; ++x) {
            float sum = 0;
            for (int r = rows.start[y]; r < rows.start[y + 1]; ++r) {
                const int32_t* row = plane + static_cast<int64_t>(rows.pixel[rows.slot[r]]) * width;
                float covered = 0;
                for (int c = columns.start[x]; c < columns.start[x + 1]; ++c) {
                    if (row[columns.pixel[columns.slot[c]]] == id) covered += columns.weight[c];
                }
                sum += rows.weight[r] * covered;
            }
            out[y * size + x] = binary ? (sum >= 0.5f ? 1.0f : 0.0f) : sum;
        }
    }
}

Tensor crop_labels(const Tensor& planes, const Tensor& rois, const Tensor& plane, const Tensor& ids, int64_t size,
                   bool binary, bool aligned) {
    check_crop_labels(planes, rois, plane, ids, size);
    const int64_t count = rois.size(0);
    const int height = static_cast<int>(planes.size(1)), width = static_cast<int>(planes.size(2));
    const auto* pixels = static_cast<const int32_t*>(planes.const_data_ptr());
    const auto* roi = static_cast<const float*>(rois.const_data_ptr());
    const auto* plane_of = static_cast<const int64_t*>(plane.const_data_ptr());
    const auto* id_of = static_cast<const int64_t*>(ids.const_data_ptr());
    for (int64_t k = 0; k < count; ++k) {
        STD_TORCH_CHECK(plane_of[k] >= 0 && plane_of[k] < planes.size(0), "plane: ", plane_of[k], " of roi ", k,
                        " is not one of the ", planes.size(0), " planes");
        for (int i = 0; i < 4; ++i) {
            STD_TORCH_CHECK(std::isfinite(roi[4 * k + i]), "rois: roi ", k, " has a coordinate that is not finite");
        }
    }
    Tensor out = torch::stable::empty({count, size, size}, ScalarType::Float);
    auto* result = static_cast<float*>(out.mutable_data_ptr());
    const int bins = static_cast<int>(size);
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        AxisTaps<float> rows, columns;
        for (int64_t k = begin; k < end; ++k) {
            const float* r = roi + 4 * k;
            rows.compute(r[1], r[3], 1.0f, bins, -1, aligned, height);
            columns.compute(r[0], r[2], 1.0f, bins, -1, aligned, width);
            crop(pixels + plane_of[k] * height * width, width, id_of[k], rows, columns, bins, binary,
                 result + k * size * size);
        }
    });
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) { m.impl("crop_labels", TORCH_BOX(&maskrcnn::crop_labels)); }

// Mask targets cropped from label planes: one thread per bin.
#include "../checks.h"
#include "../geometry.h"
#include "launch.cuh"

namespace maskrcnn {
namespace {

__global__ void crop(const int32_t* planes, int64_t plane_count, int height, int width, const float* rois,
                     const int64_t* plane_of, const int64_t* id_of, int64_t count, int size, bool binary, bool aligned,
                     float* out) {
    MASKRCNN_FOR_EACH(index, count * size * size) {
        const int x = static_cast<int>(index % size), y = static_cast<int>(index / size % size);
        const int64_t k = index / (static_cast<int64_t>(size) * size);
        const float* roi = rois + 4 * k;
        float sum = 0;
        if (plane_of[k] >= 0 && plane_of[k] < plane_count) {
            const int32_t* plane = planes + plane_of[k] * height * width;
            const int64_t id = id_of[k];
            const RoIAxis<float> rows(roi[1], roi[3], 1.0f, size, -1, aligned);
            const RoIAxis<float> columns(roi[0], roi[2], 1.0f, size, -1, aligned);
            int first_row, last_row, first_column, last_column;
            rows.points_on_map(y, height, &first_row, &last_row);
            columns.points_on_map(x, width, &first_column, &last_column);
            for (int r = first_row; r < last_row; ++r) {
                const BilinearTap<float> row(rows.position(y, r), height);
                const int32_t* low = plane + static_cast<int64_t>(row.low) * width;
                const int32_t* high = plane + static_cast<int64_t>(row.high) * width;
                for (int c = first_column; c < last_column; ++c) {
                    const BilinearTap<float> column(columns.position(x, c), width);
                    const float in_low = (low[column.low] == id ? column.weight_low : 0.0f) +
                                         (low[column.high] == id ? column.weight_high : 0.0f);
                    const float in_high = (high[column.low] == id ? column.weight_low : 0.0f) +
                                          (high[column.high] == id ? column.weight_high : 0.0f);
                    sum += row.weight_low * in_low + row.weight_high * in_high;
                }
            }
            const float points = static_cast<float>(rows.grid) * static_cast<float>(columns.grid);
            if (points > 0) sum /= points;
        }
        out[index] = binary ? (sum >= 0.5f ? 1.0f : 0.0f) : sum;
    }
}

Tensor crop_labels(const Tensor& planes, const Tensor& rois, const Tensor& plane, const Tensor& ids, int64_t size,
                   bool binary, bool aligned) {
    check_crop_labels(planes, rois, plane, ids, size);
    const int64_t count = rois.size(0);
    Tensor out = torch::stable::new_empty(rois, {count, size, size});
    if (count == 0) return out;
    const Launch launch(planes);
    crop<<<Launch::blocks(count * size * size), kThreads, 0, launch.stream()>>>(
        static_cast<const int32_t*>(planes.const_data_ptr()), planes.size(0), static_cast<int>(planes.size(1)),
        static_cast<int>(planes.size(2)), static_cast<const float*>(rois.const_data_ptr()),
        static_cast<const int64_t*>(plane.const_data_ptr()), static_cast<const int64_t*>(ids.const_data_ptr()), count,
        static_cast<int>(size), binary, aligned, static_cast<float*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("crop_labels", TORCH_BOX(&maskrcnn::crop_labels)); }

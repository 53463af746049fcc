// Encodes the network's small masks as COCO run lengths: one block per mask, one thread per column of pixels.
//
// A run ends where a pixel differs from the previous one in column order. The changes of a column can be found without
// its neighbours, so they are counted first; when the offset of each mask's runs is known, they are found again and
// written. No mask of the picture's size is made.
#include <tuple>

#include "../checks.h"
#include "../mask_geometry.h"
#include "aten.cuh"
#include "launch.cuh"

namespace maskrcnn {
namespace {

constexpr int kColumns = 128;  // columns at a time: threads of a block

struct Picture {
    int64_t height, width;
    float threshold;
    bool aligned;
};

// A mask resized to its box, and the part of the box that is inside the picture.
struct PastedMask {
    const float* mask;
    int64_t mask_size;
    Picture picture;
    MaskAxis rows, columns;
    int64_t left, right, top, bottom;
    bool whole_columns;  // the picture's: the pixel below the lowest of a column is the next one's highest

    // A box that is not finite has no pixels: the host cannot check without synchronizing.
    __device__ PastedMask(const float* masks, const float* boxes, int64_t k, int64_t size, const Picture& picture)
        : mask(masks + k * size * size),
          mask_size(size),
          picture(picture),
          rows(boxes[4 * k + 1], boxes[4 * k + 3], size, picture.aligned),
          columns(boxes[4 * k], boxes[4 * k + 2], size, picture.aligned),
          left(max(columns.begin, int64_t(0))),
          right(min(columns.end, picture.width)),
          top(max(rows.begin, int64_t(0))),
          bottom(min(rows.end, picture.height)),
          whole_columns(top == 0 && bottom == picture.height) {
        if (!is_finite_box(boxes + 4 * k) || top >= bottom) right = left;
    }

    __device__ float line(int row, const MaskTap& x) const { return interpolate_row(mask, mask_size, row, x); }

    __device__ bool inside(int64_t x, int64_t y) const {
        const MaskTap column = columns.tap(x), row = rows.tap(y);
        return row.mix(line(row.low, column), line(row.high, column)) > picture.threshold;
    }

    // Calls visit(p) for every pixel p = x * height + y of the column, and the one below it, that differs from p - 1.
    template <typename Visit>
    __device__ void visit_changes(int64_t x, const Visit& visit) const {
        const MaskTap column = columns.tap(x);
        bool before = whole_columns && x > left && inside(x - 1, bottom - 1);
        int of_row = -1;
        float low = 0, high = 0;
        for (int64_t y = top; y < bottom; ++y) {
            const MaskTap row = rows.tap(y);
            if (row.low != of_row) {
                of_row = row.low;
                low = line(row.low, column);
                high = line(row.high, column);
            }
            const bool now = row.mix(low, high) > picture.threshold;
            if (now != before) visit(x * picture.height + y);
            before = now;
        }
        const int64_t below = x * picture.height + bottom;
        const bool next_column_looks = whole_columns && x + 1 < right;
        if (before && !next_column_looks && below < picture.height * picture.width) visit(below);
    }

    __device__ int64_t count_changes(int64_t x) const {
        int64_t count = 0;
        if (x < right) visit_changes(x, [&](int64_t) { ++count; });
        return count;
    }
};

// The sum of the values of the threads before this one; `total`: of all. Every thread of the block must call.
__device__ int64_t sum_before(int64_t value, int64_t* total) {
    __shared__ int64_t sums[kColumns];
    const int me = threadIdx.x;
    sums[me] = value;
    __syncthreads();
    for (int step = 1; step < kColumns; step *= 2) {
        const int64_t other = me >= step ? sums[me - step] : 0;
        __syncthreads();
        sums[me] += other;
        __syncthreads();
    }
    *total = sums[kColumns - 1];
    const int64_t before = sums[me] - value;
    __syncthreads();  // the next call writes
    return before;
}

__global__ void count_runs(const float* masks, const float* boxes, int64_t mask_size, Picture picture,
                           int64_t* counts) {
    const PastedMask mask(masks, boxes, blockIdx.x, mask_size, picture);
    int64_t mine = 0, changes = 0;
    for (int64_t x = mask.left + threadIdx.x; x < mask.right; x += kColumns) mine += mask.count_changes(x);
    sum_before(mine, &changes);
    if (threadIdx.x == 0) counts[blockIdx.x] = changes + 1;
}

__global__ void write_runs(const float* masks, const float* boxes, int64_t mask_size, Picture picture,
                           const int64_t* ends, int64_t* all_runs) {
    const PastedMask mask(masks, boxes, blockIdx.x, mask_size, picture);
    const int64_t begin = blockIdx.x == 0 ? 0 : ends[blockIdx.x - 1];
    int64_t* runs = all_runs + begin;  // first the positions of the changes
    int64_t changes = 0;
    for (int64_t base = mask.left; base < mask.right; base += kColumns) {
        const int64_t x = base + threadIdx.x;
        int64_t total = 0;
        int64_t at = changes + sum_before(mask.count_changes(x), &total);
        if (x < mask.right) mask.visit_changes(x, [&](int64_t place) { runs[at++] = place; });
        changes += total;
    }
    __syncthreads();
    // Then the differences, from the last on: run i needs the positions i and i - 1.
    for (int64_t last = changes; last >= 0; last -= kColumns) {
        const int64_t i = last - threadIdx.x;
        const int64_t start = i > 0 ? runs[i - 1] : 0;
        const int64_t end = i < 0 ? 0 : i < changes ? runs[i] : picture.height * picture.width;
        __syncthreads();
        if (i >= 0) runs[i] = end - start;
    }
}

std::tuple<Tensor, Tensor> mask_runs(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                                     double threshold, bool aligned) {
    check_mask_runs(masks, boxes, height, width);
    const int64_t count = masks.size(0), mask_size = masks.size(1);
    Tensor counts = torch::stable::new_empty(masks, {count}, ScalarType::Long);
    if (count == 0) return {torch::stable::new_empty(masks, {0}, ScalarType::Long), counts};
    const Launch launch(masks);
    const Picture picture{height, width, static_cast<float>(threshold), aligned};
    const auto* mask = static_cast<const float*>(masks.const_data_ptr());
    const auto* box = static_cast<const float*>(boxes.const_data_ptr());
    const auto blocks = static_cast<unsigned>(count);
    count_runs<<<blocks, kColumns, 0, launch.stream()>>>(mask, box, mask_size, picture,
                                                         static_cast<int64_t*>(counts.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    Tensor ends = aten::cumsum(counts);
    const int64_t total = aten::item(torch::stable::narrow(ends, 0, count - 1, 1));
    Tensor runs = torch::stable::new_empty(masks, {total}, ScalarType::Long);
    write_runs<<<blocks, kColumns, 0, launch.stream()>>>(mask, box, mask_size, picture,
                                                         static_cast<const int64_t*>(ends.const_data_ptr()),
                                                         static_cast<int64_t*>(runs.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return {runs, ends};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("mask_runs", TORCH_BOX(&maskrcnn::mask_runs)); }

// Non-maximum suppression on the device, without a copy to the host and with memory that grows with N.
//
// Boxes come from high to low score (in each group), and are settled a tile at a time: which boxes of the tile survive
// one another is decided by one block from a bit matrix of the tile alone; then every later box is compared with the
// survivors. A matrix of all pairs, N * N / 8 bytes, is never made.
#include "../checks.h"
#include "../geometry.h"
#include "launch.cuh"

namespace maskrcnn {
namespace {

constexpr int kTile = 1024;
constexpr int kWord = 64;  // boxes in a word of the bit matrix
constexpr int kWords = kTile / kWord;

// The boxes of one tile that survived.
struct Survivors {
    int count;
    int32_t position[kTile];  // in the order of the boxes
};

template <typename T>
__device__ bool overlaps(const Box<T>& a, const Box<T>& b, T threshold) {
    return box_iou(a, a.area(), b, b.area()) > threshold;
}

// matrix[i * kWords + w], bit j: box i of the tile suppresses the later box w * 64 + j.
template <typename T>
__global__ void compare_within_tile(const Box<T>* boxes, const int64_t* group, int count, T threshold,
                                    uint64_t* matrix) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, w = blockIdx.y;
    __shared__ Box<T> column[kWord];
    __shared__ int64_t column_group[kWord];
    const int mine = w * kWord + threadIdx.x;
    if (mine < count) {
        column[threadIdx.x] = boxes[mine];
        column_group[threadIdx.x] = group[mine];
    }
    __syncthreads();
    if (i >= count) return;
    const Box<T> box = boxes[i];
    uint64_t bits = 0;
    for (int j = 0; j < kWord && w * kWord + j < count; ++j) {
        const bool later = w * kWord + j > i;
        if (later && column_group[j] == group[i] && overlaps(box, column[j], threshold)) bits |= uint64_t(1) << j;
    }
    matrix[i * kWords + w] = bits;
}

// One warp: lane w knows which of the boxes w * 64 ... are suppressed, and asks the lane that knows the current one.
__global__ void settle_tile(const uint64_t* matrix, int count, int first, bool* keep, Survivors* survivors) {
    constexpr unsigned kAll = 0xffffffff;
    constexpr int kAhead = 8;  // rows that are read before the first of them is needed
    const int lane = threadIdx.x;
    const int mine = lane < kWords ? max(0, min(kWord, count - lane * kWord)) : 0;
    uint64_t suppressed = 0;
    for (int j = 0; j < mine; ++j) {
        if (!keep[lane * kWord + j]) suppressed |= uint64_t(1) << j;  // by an earlier tile
    }
    for (int i = 0; i < count; i += kAhead) {
        uint64_t row[kAhead];
#pragma unroll
        for (int u = 0; u < kAhead; ++u) row[u] = i + u < count && lane < kWords ? matrix[(i + u) * kWords + lane] : 0;
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
            const uint64_t current = __shfl_sync(kAll, suppressed, i / kWord);
            if (!(current >> ((i + u) % kWord) & 1)) suppressed |= row[u];
        }
    }
    const int alive = mine - __popcll(suppressed);
    int before = 0;
    for (int v = 0; v < kWords; ++v) {
        const int others = __shfl_sync(kAll, alive, v);
        if (v < lane) before += others;
    }
    if (lane == kWords) survivors->count = before;
    for (int j = 0; j < mine; ++j) {
        const bool kept = !(suppressed >> j & 1);
        keep[lane * kWord + j] = kept;
        if (kept) survivors->position[before++] = first + lane * kWord + j;
    }
}

template <typename T>
__global__ void suppress_later(const Box<T>* boxes, const int64_t* group, int64_t begin, int64_t count, T threshold,
                               const Survivors* survivors, bool* keep) {
    __shared__ Box<T> kept[kThreads];
    __shared__ int64_t kept_group[kThreads];
    const int64_t i = begin + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool exists = i < count;
    const Box<T> box = exists ? boxes[i] : Box<T>{};
    const int64_t of_group = exists ? group[i] : 0;
    bool alive = exists && keep[i];
    for (int base = 0; base < survivors->count; base += kThreads) {
        const int have = min(kThreads, survivors->count - base);
        if (static_cast<int>(threadIdx.x) < have) {
            const int position = survivors->position[base + threadIdx.x];
            kept[threadIdx.x] = boxes[position];
            kept_group[threadIdx.x] = group[position];
        }
        __syncthreads();
        for (int k = 0; k < have && alive; ++k) {
            if (kept_group[k] == of_group && overlaps(kept[k], box, threshold)) alive = false;
        }
        if (!__syncthreads_or(alive)) break;
    }
    if (exists && !alive) keep[i] = false;
}

template <typename T>
void suppress(const Tensor& boxes, const Tensor& group, double iou_threshold, Tensor& keep) {
    const Launch launch(boxes);
    const int64_t count = boxes.size(0);
    const T threshold = round_down<T>(iou_threshold);
    const auto* box = static_cast<const Box<T>*>(boxes.const_data_ptr());
    const auto* id = static_cast<const int64_t*>(group.const_data_ptr());
    auto* kept = static_cast<bool*>(keep.mutable_data_ptr());
    Tensor matrix = torch::stable::new_empty(boxes, {kTile * kWords}, ScalarType::Long);
    Tensor list = torch::stable::new_empty(boxes, {static_cast<int64_t>(sizeof(Survivors))}, ScalarType::Byte);
    auto* bits = static_cast<uint64_t*>(matrix.mutable_data_ptr());
    auto* survivors = static_cast<Survivors*>(list.mutable_data_ptr());
    STD_CUDA_CHECK(cudaMemsetAsync(kept, 1, count, launch.stream()));
    for (int64_t first = 0; first < count; first += kTile) {
        const int tile = static_cast<int>(std::min<int64_t>(kTile, count - first));
        const dim3 grid((tile + kWord - 1) / kWord, kWords);
        compare_within_tile<T><<<grid, kWord, 0, launch.stream()>>>(box + first, id + first, tile, threshold, bits);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        settle_tile<<<1, 32, 0, launch.stream()>>>(bits, tile, static_cast<int>(first), kept + first, survivors);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        const int64_t next = first + tile;
        if (next == count) break;
        const auto blocks = static_cast<unsigned>((count - next + kThreads - 1) / kThreads);
        suppress_later<T><<<blocks, kThreads, 0, launch.stream()>>>(box, id, next, count, threshold, survivors, kept);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
}

Tensor nms(const Tensor& boxes, const Tensor& group, double threshold) {
    check_nms(boxes, group);
    STD_TORCH_CHECK(boxes.size(0) < std::numeric_limits<int32_t>::max(), "boxes: too many");
    Tensor keep = torch::stable::new_empty(boxes, {boxes.size(0)}, ScalarType::Bool);
    if (boxes.size(0) == 0) return keep;
    if (boxes.scalar_type() == ScalarType::Double) {
        suppress<double>(boxes, group, threshold, keep);
    } else {
        suppress<float>(boxes, group, threshold, keep);
    }
    return keep;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("nms", TORCH_BOX(&maskrcnn::nms)); }

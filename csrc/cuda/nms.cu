// Non-maximum suppression on the device, which the host never waits for, with memory linear in N.
//
// Boxes are sorted by descending score (in each group) and processed in tiles: one block finds the survivors of the
// tile from a bit matrix of the tile only; then every later box is compared with the survivors. The matrix of all
// pairs, N * N / 8 bytes, is never made: those of the tiles take 128 bytes per box.
#include <tuple>

#include "../checks.h"
#include "../geometry.h"
#include "aten.cuh"
#include "launch.cuh"

namespace maskrcnn {
namespace {

constexpr int kTile = 1024;
constexpr int kWord = 64;  // boxes in a word of the bit matrix
constexpr int kWords = kTile / kWord;
static_assert(kTile % kThreads == 0);
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// The boxes of one tile that survived.
struct Survivors {
    int count;
    int32_t position[kTile];  // in the order of the boxes
};

template <typename T>
__device__ bool overlaps(const Box<T>& a, const Box<T>& b, T threshold) {
    // Most pairs do not overlap: their IoU is 0 or undefined, and no division is needed, unless the threshold is below
    // 0.
    const bool apart = a.x1 >= b.x2 || b.x1 >= a.x2 || a.y1 >= b.y2 || b.y1 >= a.y2;
    if (apart && threshold >= T(0)) return false;
    return box_iou(a, a.area(), b, b.area()) > threshold;
}

// group: that of each box, sorted; null: all boxes are of one.
__device__ bool same_group(const int64_t* group, int64_t a, int64_t b) { return !group || group[a] == group[b]; }

// One thread per box i and word w of its tile. matrix[tile][w][i of the tile], bit j: box i suppresses the later box
// w * 64 + j of the tile. Words before box i are not used and not written.
template <typename T>
__global__ void compare_within_tiles(const Box<T>* boxes, const int64_t* group, int64_t count, T threshold,
                                     uint64_t* matrix) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kWord + threadIdx.x;
    const int64_t tile = i / kTile * kTile, first = tile + blockIdx.y * kWord;
    if (first + kWord <= static_cast<int64_t>(blockIdx.x) * kWord || first >= count) return;
    __shared__ Box<T> column[kWord];
    if (first + threadIdx.x < count) column[threadIdx.x] = boxes[first + threadIdx.x];
    __syncthreads();
    const Box<T> box = i < count ? boxes[i] : Box<T>{};
    const int later = static_cast<int>(max(int64_t(0), i + 1 - first));
    const int end = static_cast<int>(min(int64_t(kWord), count - first));
    uint64_t bits = 0;
    for (int j = later; j < end; ++j) {
        const bool suppresses = same_group(group, i, first + j) && overlaps(box, column[j], threshold);
        if (suppresses) bits |= uint64_t(1) << j;
    }
    matrix[tile * kWords + blockIdx.y * kTile + i - tile] = bits;
}

// One block with one warp per word of the tile. For each word in order, its warp suppresses boxes within the word, then
// the warps of later words remove the boxes that the survivors suppress.
__global__ void settle_tile(const uint64_t* matrix, int count, int64_t first, bool* keep, Survivors* survivors) {
    __shared__ uint64_t alive_of[kWords];
    const int lane = threadIdx.x % kWarp, mine = threadIdx.x / kWarp;
    const int low = mine * kWord + lane, high = low + kWarp;  // the boxes of this thread
    const uint64_t alive_low = __ballot_sync(kAllLanes, low < count && keep[low]);
    const uint64_t alive_high = __ballot_sync(kAllLanes, high < count && keep[high]);
    uint64_t alive = alive_low | alive_high << kWarp;  // all lanes of a warp know the whole word
    const int words = (count + kWord - 1) / kWord;
    for (int w = 0; w < words; ++w) {
        uint64_t row_low = 0, row_high = 0;  // read before the barrier, so that waiting for one hides the other
        if (w <= mine && mine < words) {
            row_low = matrix[mine * kTile + w * kWord + lane];
            row_high = matrix[mine * kTile + w * kWord + kWarp + lane];
        }
        if (w == mine) {
            for (int j = 0; j < kWord; ++j) {
                const uint64_t suppressed = __shfl_sync(kAllLanes, j < kWarp ? row_low : row_high, j % kWarp);
                if (alive >> j & 1) alive &= ~suppressed;
            }
            if (lane == 0) alive_of[w] = alive;
        }
        __syncthreads();
        if (w < mine) {
            uint64_t suppressed = alive_of[w] >> lane & 1 ? row_low : 0;
            if (alive_of[w] >> (kWarp + lane) & 1) suppressed |= row_high;
            for (int step = kWarp / 2; step > 0; step /= 2) {
                suppressed |= __shfl_xor_sync(kAllLanes, suppressed, step);
            }
            alive &= ~suppressed;
        }
    }
    int before = 0, total = 0;
    for (int w = 0; w < words; ++w) {
        if (w < mine) before += __popcll(alive_of[w]);
        total += __popcll(alive_of[w]);
    }
    if (threadIdx.x == 0) survivors->count = total;
    for (int bit = lane; bit < kWord && mine * kWord + bit < count; bit += kWarp) {
        const bool kept = alive >> bit & 1;
        const uint64_t earlier = alive & ((uint64_t(1) << bit) - 1);
        keep[mine * kWord + bit] = kept;
        if (kept) survivors->position[before + __popcll(earlier)] = static_cast<int32_t>(first + mine * kWord + bit);
    }
}

// One thread per later box; blockIdx.y selects the kThreads survivors that it is compared with.
template <typename T>
__global__ void suppress_later(const Box<T>* boxes, const int64_t* group, int64_t begin, int64_t count, T threshold,
                               const Survivors* survivors, bool* keep) {
    __shared__ Box<T> kept[kThreads];
    __shared__ bool matters[kThreads];
    const int64_t i = begin + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int base = blockIdx.y * kThreads, have = min(kThreads, survivors->count - base);
    // Groups are sorted: a later box can only be in the group of the tile's last box.
    const bool open = have > 0 && i < count && keep[i] && same_group(group, i, begin - 1);
    if (!__syncthreads_or(open)) return;
    if (static_cast<int>(threadIdx.x) < have) {
        const int position = survivors->position[base + threadIdx.x];
        kept[threadIdx.x] = boxes[position];
        matters[threadIdx.x] = same_group(group, position, begin - 1);
    }
    __syncthreads();
    if (!open) return;
    const Box<T> box = boxes[i];
    for (int k = 0; k < have; ++k) {
        if (matters[k] && overlaps(kept[k], box, threshold)) {
            keep[i] = false;
            return;
        }
    }
}

// keep: which of the sorted boxes are kept.
template <typename T>
void suppress(const Tensor& boxes, const std::optional<Tensor>& group, double iou_threshold, Tensor& keep) {
    const Launch launch(boxes);
    const int64_t count = boxes.size(0), tiles = (count + kTile - 1) / kTile;
    const T threshold = round_down<T>(iou_threshold);
    const auto* box = static_cast<const Box<T>*>(boxes.const_data_ptr());
    const auto* id = group ? static_cast<const int64_t*>(group->const_data_ptr()) : nullptr;
    auto* kept = static_cast<bool*>(keep.mutable_data_ptr());
    Tensor matrix = torch::stable::new_empty(boxes, {tiles * kTile * kWords}, ScalarType::Long);
    Tensor list = torch::stable::new_empty(boxes, {static_cast<int64_t>(sizeof(Survivors))}, ScalarType::Byte);
    auto* bits = static_cast<uint64_t*>(matrix.mutable_data_ptr());
    auto* survivors = static_cast<Survivors*>(list.mutable_data_ptr());
    STD_CUDA_CHECK(cudaMemsetAsync(kept, 1, count, launch.stream()));
    const dim3 words(static_cast<unsigned>((count + kWord - 1) / kWord), kWords);
    compare_within_tiles<T><<<words, kWord, 0, launch.stream()>>>(box, id, count, threshold, bits);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    for (int64_t first = 0; first < count; first += kTile) {
        const int tile = static_cast<int>(std::min<int64_t>(kTile, count - first));
        settle_tile<<<1, kWords * kWarp, 0, launch.stream()>>>(bits + first * kWords, tile, first, kept + first,
                                                               survivors);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        const int64_t next = first + tile;
        if (next == count) break;
        const dim3 later(static_cast<unsigned>((count - next + kThreads - 1) / kThreads), kTile / kThreads);
        suppress_later<T><<<later, kThreads, 0, launch.stream()>>>(box, id, next, count, threshold, survivors, kept);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
}

std::tuple<Tensor, Tensor> nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                               double threshold) {
    check_nms(boxes, scores, idxs);
    Tensor keep = torch::stable::new_empty(boxes, {boxes.size(0)}, ScalarType::Bool);
    if (boxes.size(0) == 0) return {torch::stable::new_empty(boxes, {0}, ScalarType::Long), keep};
    const auto run = boxes.scalar_type() == ScalarType::Double ? suppress<double> : suppress<float>;
    const Tensor order = aten::stable_order(scores, true);
    if (!idxs) {
        run(aten::index_select(boxes, order), std::nullopt, threshold, keep);
        return {order, keep};
    }
    const Tensor group = aten::index_select(*idxs, order);
    const Tensor by_group = aten::stable_order(group, false);  // from high to low score in each group
    run(aten::index_select(boxes, aten::index_select(order, by_group)), aten::index_select(group, by_group), threshold,
        keep);
    return {order, aten::scatter(by_group, keep)};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("nms", TORCH_BOX(&maskrcnn::nms)); }

// Non-maximum suppression on the device, which the host never waits for, with memory linear in N, in two launches
// whatever N and the groups are.
//
// Boxes are sorted by descending score (in each group) and divided into tiles. A block finds the survivors of one tile
// from a bit matrix of the tile only, after it has compared the tile's boxes with the survivors of the earlier tiles,
// as those become known. It only waits for tiles that have a group in common with its own, so that groups are processed
// at the same time. The matrix of all pairs, N * N / 8 bytes, is never made: those of the tiles take 64 bytes per box.
#include <tuple>

#include "../checks.h"
#include "../geometry.h"
#include "aten.cuh"
#include "launch.cuh"

namespace maskrcnn {
namespace {

constexpr int kWord = 64;                 // boxes in a word of the bit matrix
constexpr int kWords = kThreads / kWarp;  // of a tile: one for each warp
constexpr int kTile = kWords * kWord;

template <typename T>
__device__ bool suppresses(const Box<T>& a, const Box<T>& b, T threshold) {
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
    for (int j = later; j < end && same_group(group, i, first + j); ++j) {
        if (suppresses(box, column[j], threshold)) bits |= uint64_t(1) << j;
    }
    matrix[tile * kWords + blockIdx.y * kTile + i - tile] = bits;
}

// The bits of a word that stand for box `begin` of the tile and later ones.
__device__ uint64_t bits_from(int begin, int word) {
    const int bit = begin - word * kWord;
    return bit <= 0 ? ~uint64_t(0) : bit < kWord ? ~uint64_t(0) << bit : 0;
}

// Finds the survivors among the boxes that are alive, which are in words first .. last - 1. Each warp has a word, which
// all its lanes know, here and as the result; survivors_of is that of all. Every thread of the block must call.
__device__ uint64_t settle(const uint64_t* matrix, uint64_t alive, int first, int last, uint64_t* survivors_of) {
    const int lane = threadIdx.x % kWarp, mine = threadIdx.x / kWarp;
    const bool takes_part = first <= mine && mine < last;
    const uint64_t* rows = matrix + mine * kTile + lane;
    const uint64_t own_low = takes_part ? rows[mine * kWord] : 0;  // long before they are needed
    const uint64_t own_high = takes_part ? rows[mine * kWord + kWarp] : 0;
    __syncthreads();  // survivors_of may still be read
    // For each word in order, its warp suppresses boxes within the word, then the warps of later words remove the boxes
    // that the survivors suppress.
    for (int w = first; w < last; ++w) {
        const bool later = takes_part && w < mine;  // read before the barrier, so that waiting for one hides the other
        const uint64_t row_low = later ? rows[w * kWord] : 0, row_high = later ? rows[w * kWord + kWarp] : 0;
        if (w == mine) {
            for (int j = 0; j < kWord; ++j) {
                const uint64_t suppressed = __shfl_sync(kAllLanes, j < kWarp ? own_low : own_high, j % kWarp);
                if (alive >> j & 1) alive &= ~suppressed;
            }
            if (lane == 0) survivors_of[w] = alive;
        }
        __syncthreads();
        if (later) {
            uint64_t suppressed = survivors_of[w] >> lane & 1 ? row_low : 0;
            if (survivors_of[w] >> (kWarp + lane) & 1) suppressed |= row_high;
            for (int step = kWarp / 2; step > 0; step /= 2) {
                suppressed |= __shfl_xor_sync(kAllLanes, suppressed, step);
            }
            alive &= ~suppressed;
        }
    }
    return alive;
}

// What the tiles tell one another. The host sets all to 0.
struct Progress {
    int started;       // tiles
    int survivors[1];  // of each tile, in its last group, plus 1; 0 while they are not known
};

// Waits until the survivors of a tile are known, and returns how many there are; every thread of the block must call.
__device__ int wait_for(const Progress* progress, int64_t tile) {
    __shared__ int known;
    __syncthreads();
    if (threadIdx.x == 0) {
        const volatile int* survivors = progress->survivors + tile;
        while ((known = *survivors) == 0) __nanosleep(100);
        __threadfence();
    }
    __syncthreads();
    return known - 1;
}

// The first tile that has boxes of this tile's first group; every thread of the block must call.
__device__ int64_t first_of_group(const int64_t* group, int64_t tile) {
    if (!group) return 0;
    int64_t others = 0;  // tiles that begin with another group
    for (int64_t base = 0; base < tile; base += kThreads) {
        const int64_t earlier = base + threadIdx.x;
        others += __syncthreads_count(earlier < tile && group[earlier * kTile] != group[tile * kTile]);
    }
    return others > 0 && group[others * kTile - 1] == group[tile * kTile] ? others - 1 : others;
}

// One tile per block. Its boxes have two parts: the head is of the group that the tile before ends with; the groups of
// the body begin here, so that it needs no other tile. kept: room for the surviving boxes of each tile.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    settle_tiles(const Box<T>* boxes, const int64_t* group, int64_t all, T threshold, const uint64_t* matrix,
                 Box<T>* kept, Progress* progress, bool* keep) {
    __shared__ uint64_t survivors_of[kWords];
    __shared__ Box<T> staged[kThreads];
    __shared__ int next;
    // Tiles are taken in order, whatever the order of blocks: those that a block waits for have begun before it.
    if (threadIdx.x == 0) next = atomicAdd(&progress->started, 1);
    __syncthreads();
    const int64_t tile = next, first = tile * kTile;
    const int count = static_cast<int>(min(int64_t(kTile), all - first)), words = (count + kWord - 1) / kWord;
    const int lane = threadIdx.x % kWarp, mine = threadIdx.x / kWarp;
    const int low = mine * kWord + lane, high = low + kWarp;  // the boxes of this thread
    matrix += first * kWords;
    int head = 0, of_last = 0;  // boxes in the head, and in the last group
    for (const int i : {low, high}) {
        head += __syncthreads_count(i < count && first > 0 && same_group(group, first - 1, first + i));
        of_last += __syncthreads_count(i < count && same_group(group, first + i, first + count - 1));
    }
    const auto publish = [&](uint64_t alive) {
        const int begin = count - of_last;
        int before = 0, total = 0;
        for (int w = begin / kWord; w < words; ++w) {
            const int survivors = __popcll(survivors_of[w] & bits_from(begin, w));
            if (w < mine) before += survivors;
            total += survivors;
        }
        alive &= bits_from(begin, mine);
        for (int bit = lane; bit < kWord; bit += kWarp) {
            const uint64_t earlier = alive & ((uint64_t(1) << bit) - 1);
            if (alive >> bit & 1) kept[first + before + __popcll(earlier)] = boxes[first + mine * kWord + bit];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            *static_cast<volatile int*>(progress->survivors + tile) = total + 1;
        }
    };
    const uint64_t present = ~bits_from(count, mine);
    uint64_t survivors = settle(matrix, present & bits_from(head, mine), head / kWord, words, survivors_of);
    if (head < count) publish(survivors);
    if (head > 0) {
        bool alive_low = low < head, alive_high = high < head;
        const Box<T> box_low = alive_low ? boxes[first + low] : Box<T>{};
        const Box<T> box_high = alive_high ? boxes[first + high] : Box<T>{};
        for (int64_t earlier = first_of_group(group, tile); earlier < tile; ++earlier) {
            const int known = wait_for(progress, earlier);
            for (int base = 0; base < known; base += kThreads) {
                const int have = min(kThreads, known - base);
                if (static_cast<int>(threadIdx.x) < have) {
                    staged[threadIdx.x] = kept[earlier * kTile + base + threadIdx.x];
                }
                __syncthreads();
                for (int k = 0; k < have && alive_low; ++k) {
                    alive_low = !suppresses(staged[k], box_low, threshold);
                }
                for (int k = 0; k < have && alive_high; ++k) {
                    alive_high = !suppresses(staged[k], box_high, threshold);
                }
                __syncthreads();
            }
        }
        const uint64_t in_low = __ballot_sync(kAllLanes, alive_low), in_high = __ballot_sync(kAllLanes, alive_high);
        const uint64_t of_head = settle(matrix, in_low | in_high << kWarp, 0, (head + kWord - 1) / kWord, survivors_of);
        if (head == count) publish(of_head);
        survivors |= of_head;
    }
    if (low < count) keep[first + low] = survivors >> lane & 1;
    if (high < count) keep[first + high] = survivors >> (kWarp + lane) & 1;
}

// keep: which of the sorted boxes are kept.
template <typename T>
void suppress(const Tensor& boxes, const std::optional<Tensor>& group, double iou_threshold, Tensor& keep) {
    const Launch launch(boxes);
    const int64_t count = boxes.size(0), tiles = (count + kTile - 1) / kTile;
    const T threshold = round_down<T>(iou_threshold);
    const auto* box = static_cast<const Box<T>*>(boxes.const_data_ptr());
    const auto* id = group ? static_cast<const int64_t*>(group->const_data_ptr()) : nullptr;
    const Tensor matrix = torch::stable::new_empty(boxes, {tiles * kTile * kWords}, ScalarType::Long);
    const Tensor kept = torch::stable::empty_like(boxes);
    const Tensor counts = torch::stable::new_zeros(boxes, {1 + tiles}, ScalarType::Int);
    auto* bits = static_cast<uint64_t*>(matrix.mutable_data_ptr());
    const dim3 words(static_cast<unsigned>((count + kWord - 1) / kWord), kWords);
    compare_within_tiles<T><<<words, kWord, 0, launch.stream()>>>(box, id, count, threshold, bits);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    settle_tiles<T><<<static_cast<unsigned>(tiles), kThreads, 0, launch.stream()>>>(
        box, id, count, threshold, bits, static_cast<Box<T>*>(kept.mutable_data_ptr()),
        static_cast<Progress*>(counts.mutable_data_ptr()), static_cast<bool*>(keep.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
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

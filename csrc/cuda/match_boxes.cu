// Matches anchors to targets: one thread per anchor, the targets near the block's in shared memory, memory A + G.
// Images are processed one after another; anchors are only compared with targets of the same image.
#include <cmath>
#include <limits>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "launch.cuh"

namespace maskrcnn {
namespace {

// The bits of floats >= 0 have the same order as the floats, so that an integer atomic finds the maximum.
__device__ void raise_to(float* place, float value) { atomicMax(reinterpret_cast<int*>(place), __float_as_int(value)); }
__device__ void raise_to(double* place, double value) {
    atomicMax(reinterpret_cast<unsigned long long*>(place),
              static_cast<unsigned long long>(__double_as_longlong(value)));
}

// The sides of a box that encloses all anchors of the block; coordinates that are not numbers are ignored, as such a
// box overlaps nothing. Every thread of the block must call.
template <typename T>
__device__ Box<T> enclose(Box<T> anchor) {
    __shared__ Box<T> of_warp[kThreads / kWarp];
    const auto join = [](Box<T>& a, const Box<T>& b) {
        a = {std::fmin(a.x1, b.x1), std::fmin(a.y1, b.y1), std::fmax(a.x2, b.x2), std::fmax(a.y2, b.y2)};
    };
    for (int step = kWarp / 2; step > 0; step /= 2) {
        join(anchor, {__shfl_xor_sync(kAllLanes, anchor.x1, step), __shfl_xor_sync(kAllLanes, anchor.y1, step),
                      __shfl_xor_sync(kAllLanes, anchor.x2, step), __shfl_xor_sync(kAllLanes, anchor.y2, step)});
    }
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = anchor;
    __syncthreads();
    for (const Box<T>& other : of_warp) join(anchor, other);
    return anchor;
}

template <typename T>
__device__ bool touch(const Box<T>& a, const Box<T>& b) {
    return !(a.x1 >= b.x2 || b.x1 >= a.x2 || a.y1 >= b.y2 || b.y1 >= a.y2);
}

// Calls visit(target, IoU) for the targets that may overlap the anchor, in order; every thread of the block must call.
// Neighbouring anchors are neighbours in the image: most targets touch no anchor of the block, and are left out at
// once.
template <typename T, typename Visit>
__device__ void visit_targets(const Box<T>* targets, int64_t target_count, const Box<T>& anchor, const Visit& visit) {
    __shared__ Box<T> staged[kThreads];
    __shared__ int64_t index[kThreads];
    __shared__ unsigned found[kThreads / kWarp];
    const Box<T> all_anchors = enclose(anchor);
    const T area = anchor.area();
    const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int64_t base = 0; base < target_count; base += kThreads) {
        const int64_t mine = base + threadIdx.x;
        const Box<T> target = mine < target_count ? targets[mine] : Box<T>{};
        const bool near = mine < target_count && touch(target, all_anchors);
        const unsigned bits = __ballot_sync(kAllLanes, near);
        if (lane == 0) found[warp] = bits;
        __syncthreads();
        int have = 0, at = __popc(bits & ((1u << lane) - 1));
        for (unsigned w = 0; w < kThreads / kWarp; ++w) {
            if (w == warp) at += have;
            have += __popc(found[w]);
        }
        if (near) {
            staged[at] = target;
            index[at] = mine;
        }
        __syncthreads();
        for (int g = 0; g < have; ++g) {
            if (!touch(staged[g], anchor)) continue;
            const T iou = box_iou(staged[g], staged[g].area(), anchor, area);
            visit(index[g], iou > T(0) ? iou : T(0));
        }
    }
}

// Matches are relative to `first_target`, the index of the image's first target.
template <typename T>
__global__ void match_to_best(const Box<T>* anchors, int64_t count, const Box<T>* targets, int64_t target_count,
                              int64_t first_target, T high, T low, T* best_of_target, int64_t* nearest,
                              int64_t* matches) {
    const int64_t a = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    constexpr T kNone = std::numeric_limits<T>::quiet_NaN();
    const Box<T> anchor = a < count ? anchors[a] : Box<T>{kNone, kNone, kNone, kNone};
    T value = 0;
    int64_t which = 0;
    visit_targets(targets, target_count, anchor, [&](int64_t target, T iou) {
        if (iou > value) {
            value = iou;
            which = target;
        }
        if (!best_of_target) return;
        const volatile T* best = best_of_target + target;  // only grows: an old value costs an atomic operation
        if (iou > *best) raise_to(best_of_target + target, iou);
    });
    if (a >= count) return;
    nearest[a] = first_target + which;
    matches[a] = value < low ? kBelowLow : value < high ? kBetween : first_target + which;
}

// An anchor that has the highest IoU of some target is assigned to its own best target.
template <typename T>
__global__ void match_low_quality(const Box<T>* anchors, int64_t count, const Box<T>* targets, int64_t target_count,
                                  const T* best_of_target, const int64_t* nearest, int64_t* matches) {
    const int64_t a = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    constexpr T kNone = std::numeric_limits<T>::quiet_NaN();
    const Box<T> anchor = a < count ? anchors[a] : Box<T>{kNone, kNone, kNone, kNone};
    // A target that overlaps no anchor has a highest IoU of 0, as every anchor has with it.
    bool reached = false;
    for (int64_t base = 0; base < target_count && !reached; base += kThreads) {
        const int64_t target = base + threadIdx.x;
        reached = __syncthreads_or(target < target_count && best_of_target[target] == T(0));
    }
    visit_targets(targets, target_count, anchor,
                  [&](int64_t target, T iou) { reached = reached || iou == best_of_target[target]; });
    if (a < count && reached) matches[a] = nearest[a];
}

template <typename T>
void match(const Tensor& anchors, const Tensor& targets, const std::vector<int64_t>& anchor_counts,
           const std::vector<int64_t>& target_counts, double high, double low, bool allow_low_quality, Tensor& out) {
    const Launch launch(anchors);
    const auto* anchor = static_cast<const Box<T>*>(anchors.const_data_ptr());
    const auto* target = static_cast<const Box<T>*>(targets.const_data_ptr());
    Tensor nearest = torch::stable::new_empty(anchors, {anchors.size(0)}, ScalarType::Long);
    Tensor best = torch::stable::new_zeros(anchors, {allow_low_quality ? targets.size(0) : 0});
    auto* which = static_cast<int64_t*>(nearest.mutable_data_ptr());
    auto* best_of_target = allow_low_quality ? static_cast<T*>(best.mutable_data_ptr()) : nullptr;
    auto* matches = static_cast<int64_t*>(out.mutable_data_ptr());
    int64_t first = 0, first_target = 0;
    for (size_t i = 0; i < anchor_counts.size(); ++i) {
        const int64_t count = anchor_counts[i], target_count = target_counts[i];
        const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
        if (count > 0 && target_count == 0) {
            static_assert(kBelowLow == -1);  // all bits are 1
            STD_CUDA_CHECK(cudaMemsetAsync(matches + first, 0xff, count * sizeof(int64_t), launch.stream()));
        } else if (count > 0) {
            T* best_here = allow_low_quality ? best_of_target + first_target : nullptr;
            match_to_best<T><<<blocks, kThreads, 0, launch.stream()>>>(
                anchor + first, count, target + first_target, target_count, first_target, static_cast<T>(high),
                static_cast<T>(low), best_here, which + first, matches + first);
            STD_CUDA_KERNEL_LAUNCH_CHECK();
            if (allow_low_quality) {
                match_low_quality<T>
                    <<<blocks, kThreads, 0, launch.stream()>>>(anchor + first, count, target + first_target,
                                                               target_count, best_here, which + first, matches + first);
                STD_CUDA_KERNEL_LAUNCH_CHECK();
            }
        }
        first += count;
        first_target += target_count;
    }
}

Tensor match_boxes(const Tensor& anchors, const Tensor& targets, std::vector<int64_t> anchor_counts,
                   std::vector<int64_t> target_counts, double high, double low, bool allow_low_quality) {
    check_match_boxes(anchors, targets, anchor_counts, target_counts);
    STD_TORCH_CHECK(anchors.size(0) < std::numeric_limits<int32_t>::max(), "anchors: too many");
    Tensor out = torch::stable::new_empty(anchors, {anchors.size(0)}, ScalarType::Long);
    const auto run = anchors.scalar_type() == ScalarType::Double ? match<double> : match<float>;
    run(anchors, targets, anchor_counts, target_counts, high, low, allow_low_quality, out);
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("match_boxes", TORCH_BOX(&maskrcnn::match_boxes)); }

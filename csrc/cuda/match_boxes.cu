// Matches anchors to targets: one thread per anchor, targets in shared memory, memory A + G. Images are processed one
// after another; anchors are only compared with targets of the same image.
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

// Calls visit(target, IoU) for all targets in order, IoU 0 if it is undefined; every thread of the block must call.
template <typename T, typename Visit>
__device__ void visit_targets(const Box<T>* targets, int64_t target_count, const Box<T>& anchor, const Visit& visit) {
    __shared__ Box<T> staged[kThreads];
    const T area = anchor.area();
    for (int64_t base = 0; base < target_count; base += kThreads) {
        const int have = static_cast<int>(min(static_cast<int64_t>(kThreads), target_count - base));
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < have) staged[threadIdx.x] = targets[base + threadIdx.x];
        __syncthreads();
        for (int g = 0; g < have; ++g) {
            const T iou = box_iou(staged[g], staged[g].area(), anchor, area);
            visit(base + g, iou > T(0) ? iou : T(0));
        }
    }
}

// Matches are relative to `first_target`, the index of the image's first target.
template <typename T>
__global__ void match_to_best(const Box<T>* anchors, int64_t count, const Box<T>* targets, int64_t target_count,
                              int64_t first_target, T high, T low, T* best_of_target, int64_t* nearest,
                              int64_t* matches) {
    const int64_t a = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const Box<T> anchor = a < count ? anchors[a] : Box<T>{};
    T value = 0;
    int64_t which = 0;
    visit_targets(targets, target_count, anchor, [&](int64_t target, T iou) {
        if (iou > value) {
            value = iou;
            which = target;
        }
        if (best_of_target && iou > T(0) && iou > best_of_target[target]) raise_to(best_of_target + target, iou);
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
    const Box<T> anchor = a < count ? anchors[a] : Box<T>{};
    bool reached = false;
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

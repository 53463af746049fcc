// Which target each anchor belongs to: a thread an anchor, targets through shared memory, memory A + G.
#include "../checks.h"
#include "../geometry.h"
#include "launch.cuh"

namespace maskrcnn {
namespace {

// The bits of numbers >= 0 are ordered as the numbers are, so that the largest of many is found by an integer atomic.
__device__ void raise_to(float* place, float value) { atomicMax(reinterpret_cast<int*>(place), __float_as_int(value)); }
__device__ void raise_to(double* place, double value) {
    atomicMax(reinterpret_cast<unsigned long long*>(place),
              static_cast<unsigned long long>(__double_as_longlong(value)));
}

// Calls visit(target, IoU) for all targets in order, IoU 0 where it has no value; every thread of the block must call.
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

template <typename T>
__global__ void match_to_best(const Box<T>* anchors, int64_t count, const Box<T>* targets, int64_t target_count, T high,
                              T low, T* best_of_target, int64_t* nearest, int64_t* matches) {
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
    nearest[a] = which;
    matches[a] = value < low ? kBelowLow : value < high ? kBetween : which;
}

// An anchor that reaches some target's best overlap belongs to its own best target.
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
void match(const Tensor& anchors, const Tensor& targets, T high, T low, bool allow_low_quality, Tensor& out) {
    const Launch launch(anchors);
    const int64_t count = anchors.size(0), target_count = targets.size(0);
    const auto* anchor = static_cast<const Box<T>*>(anchors.const_data_ptr());
    const auto* target = static_cast<const Box<T>*>(targets.const_data_ptr());
    auto* matches = static_cast<int64_t*>(out.mutable_data_ptr());
    Tensor nearest = torch::stable::new_empty(anchors, {count}, ScalarType::Long);
    Tensor best = torch::stable::new_zeros(anchors, {allow_low_quality ? target_count : 0});
    auto* which = static_cast<int64_t*>(nearest.mutable_data_ptr());
    T* best_of_target = allow_low_quality ? static_cast<T*>(best.mutable_data_ptr()) : nullptr;
    const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
    match_to_best<T><<<blocks, kThreads, 0, launch.stream()>>>(anchor, count, target, target_count, high, low,
                                                               best_of_target, which, matches);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    if (!allow_low_quality) return;
    match_low_quality<T>
        <<<blocks, kThreads, 0, launch.stream()>>>(anchor, count, target, target_count, best_of_target, which, matches);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor match_boxes(const Tensor& anchors, const Tensor& targets, double high, double low, bool allow_low_quality) {
    check_match_boxes(anchors, targets);
    STD_TORCH_CHECK(anchors.size(0) < std::numeric_limits<int32_t>::max(), "anchors: too many");
    Tensor out = torch::stable::new_empty(anchors, {anchors.size(0)}, ScalarType::Long);
    if (anchors.size(0) == 0) return out;
    if (targets.size(0) == 0) return torch::stable::fill_(out, static_cast<double>(kBelowLow));
    if (anchors.scalar_type() == ScalarType::Double) {
        match<double>(anchors, targets, high, low, allow_low_quality, out);
    } else {
        match<float>(anchors, targets, static_cast<float>(high), static_cast<float>(low), allow_low_quality, out);
    }
    return out;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) { m.impl("match_boxes", TORCH_BOX(&maskrcnn::match_boxes)); }

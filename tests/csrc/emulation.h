// Runs CUDA kernels on the CPU, slowly, and finds data races in them. What a kernel of csrc/cuda/ uses of CUDA is here,
// and nothing else; emulation.cpp has the scheduler.
//
// A few blocks are in progress at a time, started in random order. Their threads take turns, and a thread may be
// interrupted at any access to memory: the kernels are compiled with -fsanitize=thread, whose calls at each access
// emulation.cpp answers. It also reports every pair of accesses that neither a barrier nor a fence with a flag orders,
// whatever came of it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define STD_CUDA_CHECK(call) (void)(call)
#define STD_CUDA_KERNEL_LAUNCH_CHECK()
#define EMULATION_UNSEEN __attribute__((no_sanitize("thread")))

struct dim3 {
    unsigned x, y;
    dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
constexpr unsigned kWarp = 32;
constexpr unsigned kResident = 3;  // blocks in progress at a time

enum class Access { kRead, kWrite, kAtomicRead, kAtomicWrite };

void launch(const char* name, dim3 grid, dim3 block, std::function<void()> body);
void wait_for_warp();
void access(const void* place, size_t bytes, Access access);
unsigned slot();                                  // of the current block among those in progress
void begin_shared(void* variable, size_t bytes);  // fills it with rubbish at a block's first use
uint64_t* lane(unsigned thread);                  // what a thread of the block gives to its warp

template <typename Kernel, typename... Arguments>
void launch(const char* name, dim3 grid, dim3 block, Kernel kernel, Arguments... arguments) {
    launch(name, grid, block, std::function<void()>([=] { kernel(arguments...); }));
}

// The current block's own of a __shared__ variable, which has one for each block in progress.
template <typename T>
EMULATION_UNSEEN T& shared(char (&of_all)[kResident][sizeof(T)]) {
    begin_shared(of_all[slot()], sizeof(T));
    return *reinterpret_cast<T*>(of_all[slot()]);
}

// What the thread `from` of the warp gives as `value`; every thread of the warp must call.
template <typename T>
EMULATION_UNSEEN T exchange(T value, unsigned from) {
    std::memcpy(lane(threadIdx.x), &value, sizeof(T));
    wait_for_warp();
    std::memcpy(&value, lane(threadIdx.x / kWarp * kWarp + from), sizeof(T));
    wait_for_warp();
    return value;
}

template <typename T, typename Change>
EMULATION_UNSEEN T change(T* place, const Change& change) {
    access(place, sizeof(T), Access::kAtomicWrite);
    const T before = *place;
    *place = change(before);
    return before;
}
}  // namespace emulation

void __syncthreads();
int __syncthreads_or(int value);
int __syncthreads_count(int value);
void __threadfence();
void __nanosleep(unsigned);

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulation::exchange(value, lane);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulation::exchange(value, threadIdx.x % emulation::kWarp ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool value) {
    unsigned bits = 0;
    for (unsigned lane = 0; lane < emulation::kWarp; ++lane) bits |= emulation::exchange<unsigned>(value, lane) << lane;
    return bits;
}
template <typename T>
EMULATION_UNSEEN T atomicAdd(T* place, T value) {
    return emulation::change(place, [=] EMULATION_UNSEEN(T before) { return before + value; });
}
template <typename T>
EMULATION_UNSEEN T atomicMax(T* place, T value) {
    return emulation::change(place, [=] EMULATION_UNSEEN(T before) { return before > value ? before : value; });
}
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
// As on the device, the four are atomic one by one.
inline float4 atomicAdd(float4* place, float4 value) {
    if (reinterpret_cast<uintptr_t>(place) % alignof(float4)) __builtin_trap();
    return {atomicAdd(&place->x, value.x), atomicAdd(&place->y, value.y), atomicAdd(&place->z, value.z),
            atomicAdd(&place->w, value.w)};
}
template <typename A, typename B>
auto min(A a, B b) {
    return a < b ? a : b;
}
template <typename A, typename B>
auto max(A a, B b) {
    return a > b ? a : b;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(uint64_t bits) { return std::popcount(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }

using cudaStream_t = void*;
using cudaError_t = int;
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    std::memset(to, value, bytes);
    return 0;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 9;  // of the newest devices, for which there is most to run
    return 0;
}

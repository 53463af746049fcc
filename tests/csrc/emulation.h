// Runs CUDA kernels on the CPU, slowly: a block is a group of threads with a barrier, blocks come one after another.
// What a kernel of csrc/cuda/ uses of CUDA is here, and nothing else.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // one block at a time: what its threads share may live as long as the program

struct dim3 {
    unsigned x, y;
    dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulation {
inline std::unique_ptr<std::barrier<>> barrier;
inline std::mutex mutex;
inline std::atomic<bool> any;
inline uint64_t lanes[32];

template <typename Kernel, typename... Arguments>
void launch(dim3 grid, dim3 block, Kernel kernel, Arguments... arguments) {
    gridDim = grid;
    blockDim = block;
    barrier = std::make_unique<std::barrier<>>(block.x);
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < block.x; ++t) {
        threads.emplace_back([=] {
            threadIdx = dim3(t, 0);
            for (unsigned y = 0; y < grid.y; ++y) {
                for (unsigned x = 0; x < grid.x; ++x) {
                    blockIdx = dim3(x, y);
                    kernel(arguments...);
                    barrier->arrive_and_wait();
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}
}  // namespace emulation

inline void __syncthreads() { emulation::barrier->arrive_and_wait(); }
inline bool __syncthreads_or(bool value) {
    __syncthreads();
    emulation::any = false;
    __syncthreads();
    if (value) emulation::any = true;
    __syncthreads();
    return emulation::any;
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    std::memcpy(&emulation::lanes[threadIdx.x], &value, sizeof(T));
    __syncthreads();
    std::memcpy(&value, &emulation::lanes[lane], sizeof(T));
    __syncthreads();
    return value;
}
template <typename T>
T atomicAdd(T* place, T value) {
    const std::lock_guard lock(emulation::mutex);
    return std::exchange(*place, *place + value);
}
template <typename T>
T atomicMax(T* place, T value) {
    const std::lock_guard lock(emulation::mutex);
    return std::exchange(*place, std::max(*place, value));
}
template <typename A, typename B>
auto min(A a, B b) {
    return a < b ? a : b;
}
template <typename A, typename B>
auto max(A a, B b) {
    return a > b ? a : b;
}
inline int __popcll(uint64_t bits) { return std::popcount(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }

using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    std::memset(to, value, bytes);
    return 0;
}

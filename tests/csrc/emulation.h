// Runs CUDA kernels on the CPU, slowly: the threads of a block take turns, changing over at barriers, and blocks come
// one after another. What a kernel of csrc/cuda/ uses of CUDA is here, and nothing else.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // one block at a time: what its threads share may live as long as the program
#define STD_CUDA_CHECK(call) (void)(call)
#define STD_CUDA_KERNEL_LAUNCH_CHECK()

struct dim3 {
    unsigned x, y;
    dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };
constexpr unsigned kWarp = 32;

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
};
inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline uint64_t lanes[1024];
inline bool any;

inline void wait(State barrier) {
    Thread& thread = threads[threadIdx.x];
    thread.state = barrier;
    swapcontext(&thread.context, &scheduler);
}

inline void enter() {
    body();
    threads[threadIdx.x].state = State::kDone;
}

// Lets threads begin .. end go on if all of them, but for those that are done, have reached this barrier.
inline bool release(unsigned begin, unsigned end, State barrier) {
    bool found = false;
    for (unsigned t = begin; t < end; ++t) {
        if (threads[t].state != barrier && threads[t].state != State::kDone) return false;
        found = found || threads[t].state == barrier;
    }
    for (unsigned t = begin; t < end; ++t) {
        if (threads[t].state == barrier) threads[t].state = State::kReady;
    }
    return found;
}

inline void run_block() {
    constexpr size_t kStack = 1 << 16;
    const unsigned count = blockDim.x;
    while (threads.size() < count) threads.push_back({{}, std::make_unique<char[]>(kStack), State::kReady});
    for (unsigned t = 0; t < count; ++t) {
        Thread& thread = threads[t];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = kStack;
        thread.context.uc_link = &scheduler;
        thread.state = State::kReady;
        makecontext(&thread.context, enter, 0);
    }
    // From the first to the last thread and back, so that what a missing barrier leaves to chance goes both ways.
    for (bool forward = true, again = true; again; forward = !forward) {
        for (unsigned i = 0; i < count; ++i) {
            const unsigned t = forward ? i : count - 1 - i;
            if (threads[t].state != State::kReady) continue;
            threadIdx = dim3(t, 0);
            swapcontext(&scheduler, &threads[t].context);
        }
        again = release(0, count, State::kAtBlockBarrier);
        for (unsigned t = 0; t < count; t += kWarp) {
            if (release(t, std::min(t + kWarp, count), State::kAtWarpBarrier)) again = true;
        }
    }
    for (unsigned t = 0; t < count; ++t) {
        if (threads[t].state == State::kDone) continue;
        std::fprintf(stderr, "emulation: thread %u waits at a barrier that others do not reach\n", t);
        std::abort();
    }
}

template <typename Kernel, typename... Arguments>
void launch(dim3 grid, dim3 block, Kernel kernel, Arguments... arguments) {
    gridDim = grid;
    blockDim = block;
    body = [=] { kernel(arguments...); };
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y);
            run_block();
        }
    }
}

// What the thread `from` of the warp gives as `value`; every thread of the warp must call.
template <typename T>
T exchange(T value, unsigned from) {
    const unsigned first = threadIdx.x / kWarp * kWarp;
    std::memcpy(&lanes[threadIdx.x], &value, sizeof(T));
    wait(State::kAtWarpBarrier);
    std::memcpy(&value, &lanes[first + from], sizeof(T));
    wait(State::kAtWarpBarrier);
    return value;
}
}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::State::kAtBlockBarrier); }
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
T atomicAdd(T* place, T value) {
    return std::exchange(*place, *place + value);
}
template <typename T>
T atomicMax(T* place, T value) {
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

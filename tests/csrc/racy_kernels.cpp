// Kernels with and without deliberate races, to test that emulation.cpp finds those that are there and no others.
#include "emulation.h"

namespace {

struct Memory {
    int counter, flag, last, value[64];
};

__global__ void add_plainly(Memory* memory) { memory->counter += 1; }
__global__ void add_atomically(Memory* memory) { atomicAdd(&memory->counter, 1); }

// Each thread reads what its neighbour wrote.
template <int kBarrier>
__global__ void shift(Memory* memory) {
    __shared__ int staged[64];
    staged[threadIdx.x] = threadIdx.x;
    if (kBarrier == 1) __syncthreads();
    if (kBarrier == 2) __shfl_sync(~0u, 0, 0);  // orders the threads of a warp only
    if (blockIdx.x == 0) memory->value[threadIdx.x] = staged[(threadIdx.x + 1) % blockDim.x];
}

// Blocks of one thread each write and count; the last one reads what all wrote.
template <bool kFence>
__global__ void reduce(Memory* memory) {
    memory->value[blockIdx.x] = 1;
    __syncthreads();
    if (kFence) __threadfence();
    const bool last = atomicAdd(&memory->counter, 1) == static_cast<int>(gridDim.x) - 1;
    if (kFence) __threadfence();
    __syncthreads();
    if (!last) return;
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += memory->value[i];
    memory->last = sum;
}

// Block 1 waits for a flag of block 0. As a pair they may be started in any order.
template <bool kVolatile>
__global__ void signal(Memory* memory) {
    if (blockIdx.x == 0) {
        memory->value[0] = 7;
        __syncthreads();
        __threadfence();
        *static_cast<volatile int*>(&memory->flag) = 1;
    } else {
        if (kVolatile) {
            while (*static_cast<volatile int*>(&memory->flag) == 0) __nanosleep(100);
        }
        __threadfence();
        __syncthreads();
        memory->last = memory->value[0];
    }
}

__global__ void write_bytes(Memory* memory) { reinterpret_cast<char*>(memory->value)[blockIdx.x] = 1; }

}  // namespace

// Runs a kernel by its name in the tests; the result is what it leaves in memory.
extern "C" int run_racy(int which) {
    Memory memory = {};
    const auto run = [&](unsigned blocks, unsigned threads, void (*kernel)(Memory*)) {
        emulation::launch("racy", dim3(blocks), dim3(threads), kernel, &memory);
    };
    switch (which) {
        case 0:
            return run(2048, 1, add_plainly), memory.counter;
        case 1:
            return run(2048, 1, add_atomically), memory.counter;
        case 2:
            return run(3, 64, shift<0>), 0;
        case 3:
            return run(3, 64, shift<1>), memory.value[63];
        case 4:
            return run(3, 64, shift<2>), 0;
        case 5:
            return run(3, 32, shift<2>), memory.value[31];
        case 6:
            return run(20, 1, reduce<false>), 0;
        case 7:
            return run(20, 1, reduce<true>), memory.last;
        case 8:
            return run(2, 1, signal<false>), 0;
        case 9:
            return run(2, 1, signal<true>), memory.last;
        case 10:
            return run(5, 1, write_bytes), 0;
        default:
            return run(1, 1, add_plainly), run(1, 1, add_plainly), memory.counter;
    }
}

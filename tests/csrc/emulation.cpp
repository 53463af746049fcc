// The scheduler of emulation.h, and its detector of races. The kernels are compiled with -fsanitize=thread, this file
// is not: it answers the calls that the compiler puts at each access to memory.
#include "emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };
constexpr size_t kStack = 1 << 16;
constexpr unsigned kNobody = ~0u, kMany = ~0u - 1;

// For each block of the launch, how many of its phases are known to have happened. A phase ends at a block barrier.
using Phases = std::vector<unsigned>;

void join(Phases& phases, const Phases& others) {
    if (phases.size() < others.size()) phases.resize(others.size());
    for (size_t i = 0; i < others.size(); ++i) phases[i] = std::max(phases[i], others[i]);
}

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    Phases seen, released;  // with flags read since its last fence; what flags that it writes tell
};

// Who accessed some bytes last. kMany: several, whose accesses nothing orders.
struct Stamp {
    unsigned block = kNobody, phase = 0, thread = 0, warp = 0, warp_phase = 0;
    bool atomic = false;
};
struct Place {
    Stamp read, write;
};

struct Block {
    dim3 index;
    int depth;
    unsigned number, phase, left;  // left: its threads that are not done
    std::vector<unsigned> warp_phase;
    std::vector<Thread> threads;
    Phases known, at_barrier;                            // now, and from the next barrier on
    std::vector<std::pair<const char*, size_t>> shared;  // its variables, and
    std::unordered_map<uintptr_t, Place> shared_places;  // their accesses
    uint64_t lanes[1024];
    int sum;
};

Block blocks[kResident];
Block* block = nullptr;  // whose thread runs; null: the host
Thread* thread = nullptr;
ucontext_t scheduler;
std::function<void()> body;
std::minstd_rand random_number(1);
std::string kernel, races;
std::unordered_map<uintptr_t, Place> places;
struct Flag {
    Phases phases;
    int depth;
};
std::map<const void*, Flag> flags;
int deepest = 0;  // the longest chain of blocks of the last launch, of which each waited for the one before
std::map<std::string, int64_t> launches;
int64_t atomics = 0, asleep = 0;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "emulation: %s: %s\n", kernel.c_str(), what);
    std::abort();
}

void give_way() { swapcontext(&thread->context, &scheduler); }

void wait(State barrier) {
    asleep = 0;
    thread->state = barrier;
    give_way();
}

void enter() {
    body();
    asleep = 0;
    --block->left;
    thread->state = State::kDone;
}

bool ordered(const Stamp& before, const Stamp& now) {
    if (before.block == kNobody) return true;
    if (before.block == kMany) return false;
    if (before.block != now.block) return before.phase < block->known[before.block];
    if (before.phase < now.phase || before.thread == now.thread) return true;
    return before.warp == now.warp && before.warp_phase < now.warp_phase;
}

// The stamp of both accesses together.
Stamp merge(const Stamp& before, const Stamp& now) {
    if (ordered(before, now)) return now;
    Stamp both = now;
    both.atomic = before.atomic && now.atomic;
    if (before.block != now.block) {
        both.block = kMany;
    } else {
        both.thread = kMany;
        if (before.warp != now.warp) both.warp = kMany;
    }
    return both;
}

void check(const Stamp& before, const Stamp& now, const char* what) {
    if (ordered(before, now) || (before.atomic && now.atomic) || !races.empty()) return;
    races = kernel + ": thread " + std::to_string(now.thread) + " of block " + std::to_string(now.block) + " " + what +
            (before.block == now.block ? " the same block" : " another block");
}

// Lets threads begin .. end go on if all of them, but for those that are done, have reached this barrier.
bool release(Block& of, unsigned begin, unsigned end, State barrier) {
    bool found = false;
    for (unsigned t = begin; t < end; ++t) {
        if (of.threads[t].state != barrier && of.threads[t].state != State::kDone) return false;
        found = found || of.threads[t].state == barrier;
    }
    for (unsigned t = begin; t < end; ++t) {
        if (of.threads[t].state == barrier) of.threads[t].state = State::kReady;
    }
    return found;
}

void start(Block& next, dim3 index, unsigned number) {
    next.index = index;
    next.number = number;
    next.phase = 0;
    next.depth = 1;
    next.left = blockDim.x;
    next.warp_phase.assign((blockDim.x + kWarp - 1) / kWarp, 0);
    next.known.assign(static_cast<size_t>(gridDim.x) * gridDim.y, 0);
    next.at_barrier.clear();
    next.shared.clear();
    next.shared_places.clear();
    next.sum = 0;
    if (next.threads.size() < blockDim.x) next.threads.resize(blockDim.x);
    for (unsigned t = 0; t < blockDim.x; ++t) {
        Thread& fresh = next.threads[t];
        if (!fresh.stack) fresh.stack = std::make_unique<char[]>(kStack);
        getcontext(&fresh.context);
        fresh.context.uc_stack.ss_sp = fresh.stack.get();
        fresh.context.uc_stack.ss_size = kStack;
        fresh.context.uc_link = &scheduler;
        fresh.state = State::kReady;
        fresh.seen.clear();
        fresh.released.clear();
        makecontext(&fresh.context, enter, 0);
    }
}

// Runs some of the block's threads, from a random one on, up or down, and opens the barriers that all have reached.
void take_turn(Block& of) {
    constexpr unsigned kOften = 64;
    block = &of;
    blockIdx = of.index;
    bool ran = false;
    const unsigned first = random_number() % blockDim.x, step = random_number() % 2 ? 1 : blockDim.x - 1;
    for (unsigned i = 0, t = first; i < blockDim.x; ++i, t = (t + step) % blockDim.x) {
        if (of.threads[t].state != State::kReady) continue;
        ran = true;
        thread = &of.threads[t];
        threadIdx = dim3(t, 0);
        swapcontext(&scheduler, &thread->context);
        if (random_number() % kOften == 0) break;
    }
    block = nullptr;
    if (of.left == 0) return;
    if (release(of, 0, blockDim.x, State::kAtBlockBarrier)) {
        ++of.phase;
        join(of.known, of.at_barrier);
        ran = true;
    }
    for (unsigned t = 0; t < blockDim.x; t += kWarp) {
        if (!release(of, t, std::min(t + kWarp, blockDim.x), State::kAtWarpBarrier)) continue;
        ++of.warp_phase[t / kWarp];
        ran = true;
    }
    if (!ran) fail("some threads wait at a barrier that others do not reach");
    if (asleep > 1000000) fail("blocks wait for blocks that cannot begin before them");
}

}  // namespace

void launch(const char* name, dim3 grid, dim3 block_size, std::function<void()> kernel_body) {
    kernel = name;
    ++launches[kernel];
    gridDim = grid;
    blockDim = block_size;
    body = std::move(kernel_body);
    places.clear();
    flags.clear();
    deepest = 1;
    asleep = 0;
    std::vector<unsigned> waiting(static_cast<size_t>(grid.x) * grid.y);
    for (unsigned i = 0; i < waiting.size(); ++i) waiting[i] = i;
    std::shuffle(waiting.begin(), waiting.end(), random_number);
    for (Block& of : blocks) of.left = 0;
    for (bool again = true; again;) {
        again = false;
        for (unsigned i = 0, b = random_number() % kResident; i < kResident; ++i, b = (b + 1) % kResident) {
            if (blocks[b].left == 0 && !waiting.empty()) {
                start(blocks[b], dim3(waiting.back() % grid.x, waiting.back() / grid.x), waiting.back());
                waiting.pop_back();
            }
            if (blocks[b].left == 0) continue;
            again = true;
            take_turn(blocks[b]);
        }
    }
}

void wait_for_warp() { wait(State::kAtWarpBarrier); }
unsigned slot() { return static_cast<unsigned>(block - blocks); }
uint64_t* lane(unsigned t) { return &block->lanes[t]; }

void begin_shared(void* variable, size_t bytes) {
    for (const auto& [begin, size] : block->shared) {
        if (begin == variable) return;
    }
    block->shared.emplace_back(static_cast<const char*>(variable), bytes);
    std::memset(variable, 0xff, bytes);
}

// Accesses of 4 bytes or more are followed in steps of 4, so that memory has to be used in one size below that.
void access(const void* place, size_t bytes, Access how) {
    if (block == nullptr) return;
    const auto* address = static_cast<const char*>(place);
    if (address >= thread->stack.get() && address < thread->stack.get() + kStack) return;
    constexpr unsigned kOften = 256;
    if (random_number() % kOften == 0) {
        asleep = 0;
        give_way();
    }
    const bool atomic = how == Access::kAtomicRead || how == Access::kAtomicWrite;
    const bool writes = how == Access::kWrite || how == Access::kAtomicWrite;
    atomics += how == Access::kAtomicWrite;
    const unsigned warp = threadIdx.x / kWarp;
    const Stamp now{block->number, block->phase, threadIdx.x, warp, block->warp_phase[warp], atomic};
    auto* of_all = &places;
    for (const auto& [begin, size] : block->shared) {
        if (address >= begin && address < begin + size) of_all = &block->shared_places;
    }
    for (size_t at = 0; at < bytes; at += 4) {
        Place& found = (*of_all)[reinterpret_cast<uintptr_t>(address) + at];
        check(found.write, now, writes ? "writes what was written by" : "reads what was written by");
        if (writes) {
            check(found.read, now, "writes what was read by");
            found.write = merge(found.write, now);
        } else {
            found.read = merge(found.read, now);
        }
    }
    if (!atomic) return;
    if (const auto flag = flags.find(place); flag != flags.end()) {
        join(thread->seen, flag->second.phases);
        if (how == Access::kAtomicRead) block->depth = std::max(block->depth, flag->second.depth + 1);
        deepest = std::max(deepest, block->depth);
    }
    if (!writes || thread->released.empty()) return;
    Flag& flag = flags[place];
    join(flag.phases, thread->released);
    flag.depth = std::max(flag.depth, block->depth);
}

}  // namespace emulation

void __syncthreads() { emulation::wait(emulation::State::kAtBlockBarrier); }

int __syncthreads_count(int value) {
    __syncthreads();
    emulation::block->sum = 0;
    __syncthreads();
    emulation::block->sum += value != 0;
    __syncthreads();
    return emulation::block->sum;
}
int __syncthreads_or(int value) { return __syncthreads_count(value) > 0; }

// What happened before the block's last barrier is told by flags written from here on; what flags told before here is
// known from the block's next barrier on.
void __threadfence() {
    using namespace emulation;
    join(block->at_barrier, thread->seen);
    thread->released = block->known;
    thread->released[block->number] = block->phase;
}

void __nanosleep(unsigned) {
    ++emulation::asleep;
    emulation::give_way();
}

// For the tests.
extern "C" {
// The first race since the last call; empty: there was none.
const char* emulation_race() {
    static std::string answer;
    answer = std::move(emulation::races);
    emulation::races.clear();
    return answer.c_str();
}
int64_t emulation_launches(const char* kernel) { return emulation::launches[kernel]; }
int emulation_depth() { return emulation::deepest; }
int64_t emulation_atomics() { return emulation::atomics; }

// The compiler's calls.
#define ACCESSES(bytes)                                                                                          \
    void __tsan_read##bytes(void* p) { emulation::access(p, bytes, emulation::Access::kRead); }                  \
    void __tsan_write##bytes(void* p) { emulation::access(p, bytes, emulation::Access::kWrite); }                \
    void __tsan_unaligned_read##bytes(void* p) { emulation::access(p, bytes, emulation::Access::kRead); }        \
    void __tsan_unaligned_write##bytes(void* p) { emulation::access(p, bytes, emulation::Access::kWrite); }      \
    void __tsan_volatile_read##bytes(void* p) { emulation::access(p, bytes, emulation::Access::kAtomicRead); }   \
    void __tsan_volatile_write##bytes(void* p) { emulation::access(p, bytes, emulation::Access::kAtomicWrite); } \
    void __tsan_unaligned_volatile_read##bytes(void* p) { __tsan_volatile_read##bytes(p); }                      \
    void __tsan_unaligned_volatile_write##bytes(void* p) { __tsan_volatile_write##bytes(p); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { emulation::access(p, bytes, emulation::Access::kRead); }
void __tsan_write_range(void* p, size_t bytes) { emulation::access(p, bytes, emulation::Access::kWrite); }
void __tsan_init() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
int __tsan_atomic32_fetch_add(volatile int* p, int value, int) { return __sync_fetch_and_add(p, value); }
}

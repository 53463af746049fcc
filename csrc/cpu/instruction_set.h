// Which vector instructions the processor has, and how one source file is compiled for several of them.
//
// setup.py compiles the files that it names VECTORISED once for each instruction set, with MASKRCNN_SET defined as
// its name. Such a file begins with its standard and torch headers, which stay baseline code; then come
//
//     #include "begin_set.h"    from here on, functions are compiled for MASKRCNN_SET
//     namespace maskrcnn { namespace MASKRCNN_SET { ... } }
//     #include "end_set.h"
//
// The namespace keeps the copies of the same function apart, which the linker would otherwise merge into one.
// register.cpp gives PyTorch the copies for the processor at hand.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>  // here, since begin_set.h must not come before it
#endif

#include <cstdlib>
#include <cstring>

#ifndef MASKRCNN_SET
#define MASKRCNN_SET baseline
#endif

// What a function calls is compiled for its instruction set only if it becomes a part of it.
#define MASKRCNN_INLINE inline __attribute__((always_inline))
#define MASKRCNN_INLINE_LAMBDA __attribute__((always_inline))

namespace maskrcnn {

enum InstructionSet { kBaseline, kAvx2, kAvx512 };
constexpr const char* kInstructionSetNames[] = {"baseline", "avx2", "avx512"};

// The best one that the processor and the operating system support, or the one that the environment variable
// MASKRCNN_CPU names, if they support that.
inline InstructionSet instruction_set() {
    static const InstructionSet chosen = [] {
        int best = kBaseline;
#if defined(__x86_64__)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = kAvx2;
        if (best == kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            best = kAvx512;
        }
#endif
        const char* asked = std::getenv("MASKRCNN_CPU");
        for (int set = 0; asked && set < best; ++set) {
            if (std::strcmp(asked, kInstructionSetNames[set]) == 0) best = set;
        }
        return static_cast<InstructionSet>(best);
    }();
    return chosen;
}

}  // namespace maskrcnn

// One binary for every x86-64 processor: functions marked MASKRCNN_MULTIVERSION are compiled for AVX-512, for AVX2 with
// FMA and for the baseline, and the loader selects the one for the processor.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define MASKRCNN_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MASKRCNN_MULTIVERSION
#endif
// Functions that it calls are compiled for the same processor only if they are inlined.
#define MASKRCNN_INLINE inline __attribute__((always_inline))
#define MASKRCNN_INLINE_LAMBDA __attribute__((always_inline))

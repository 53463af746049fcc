// Functions from here on are compiled for the instruction set MASKRCNN_SET; see instruction_set.h.
#include "instruction_set.h"

#if defined(MASKRCNN_SET_avx512) && defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2"))), \
                             apply_to = function)
#elif defined(MASKRCNN_SET_avx512)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2")
#elif defined(MASKRCNN_SET_avx2) && defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#elif defined(MASKRCNN_SET_avx2)
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif

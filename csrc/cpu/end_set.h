// Functions from here on are baseline code again; see instruction_set.h.
#if defined(MASKRCNN_SET_avx512) || defined(MASKRCNN_SET_avx2)
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

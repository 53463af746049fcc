// Vectors of 32 bytes as GCC vector extensions, which the compiler maps to the instructions of each clone's processor.
#pragma once

#include <cstdint>

namespace maskrcnn {

// May be loaded and stored at any address.
template <typename T>
struct Simd {
    typedef T Vec __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
    static constexpr int kLanes = 32 / sizeof(T);
};

}  // namespace maskrcnn

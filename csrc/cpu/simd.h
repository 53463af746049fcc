// Vectors of 32 bytes in GCC's notation: the compiler turns them into what each clone's processor has.
#pragma once

#include <cstdint>

namespace maskrcnn {

// Loaded and stored at any address.
template <typename T>
struct Simd {
    typedef T Vec __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
    static constexpr int kLanes = 32 / sizeof(T);
};

}  // namespace maskrcnn

// Vectors of 32 bytes as vector extensions of GCC and clang, which become instructions of the set compiled for.
#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace maskrcnn {
namespace MASKRCNN_SET {

// Vec is for values; AnyAddress loads and stores them at any address.
template <typename T>
struct Simd {
    typedef T Vec __attribute__((vector_size(32)));
    typedef T AnyAddress __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
    static constexpr int kLanes = 32 / sizeof(T);
};

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

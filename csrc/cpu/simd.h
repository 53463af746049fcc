// Vectors of 32 bytes in GCC's notation: the compiler turns them into what each clone's processor has.
#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace maskrcnn {
namespace MASKRCNN_SET {

// Vec: values in work. AnyAddress: how they are loaded and stored, where nothing is known of the address.
template <typename T>
struct Simd {
    typedef T Vec __attribute__((vector_size(32)));
    typedef T AnyAddress __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
    static constexpr int kLanes = 32 / sizeof(T);
};

}  // namespace MASKRCNN_SET
}  // namespace maskrcnn

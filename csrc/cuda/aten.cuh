// ATen operators that are missing in torch/csrc/stable/ops.h of the oldest supported PyTorch, via the dispatcher.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

namespace maskrcnn::aten {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls an operator with all arguments of its schema and returns result i.
template <int kResults, int kResult = 0, typename... Arguments>
Tensor call(const char* name, const char* overload, const Arguments&... arguments) {
    std::array<StableIValue, std::max<size_t>(sizeof...(arguments), kResults)> stack{
        torch::stable::detail::from(arguments)...};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
    std::array<Tensor, kResults> results;  // all are owned here and must be released
    for (int i = 0; i < kResults; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
    return results[kResult];
}

// The indices, int64, that sort a vector, stable.
inline Tensor stable_order(const Tensor& vector, bool descending) {
    return call<2, 1>("aten::sort", "stable", vector, std::optional<bool>(true), int64_t(0), descending);
}

inline Tensor index_select(const Tensor& tensor, const Tensor& index) {
    return call<1>("aten::index_select", "", tensor, int64_t(0), index);
}

// result[index[i]] = values[i], for all i.
inline Tensor scatter(const Tensor& index, const Tensor& values) {
    return call<1>("aten::scatter", "src", torch::stable::empty_like(values), int64_t(0), index, values);
}

inline Tensor cumsum(const Tensor& vector) {
    return call<1>("aten::cumsum", "", vector, int64_t(0), std::optional<ScalarType>());
}

// The value of a tensor with one entry; synchronizes.
inline int64_t item(const Tensor& tensor) {
    int64_t value = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(tensor.get(), &value));
    return value;
}

}  // namespace maskrcnn::aten

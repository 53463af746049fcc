// Large results in pages of 2 MB.
#pragma once

#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace maskrcnn {

// The first access to a fresh page takes longer than writing to it: a gradient of 33 MB causes 8,000 page faults of
// 4 KB, which take longer than the rest of RoIAlign's backward pass. The system may ignore the advice.
inline void use_huge_pages(const torch::stable::Tensor& fresh) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = uintptr_t{1} << 21;
    const auto begin = reinterpret_cast<uintptr_t>(fresh.const_data_ptr());
    const uintptr_t end = begin + static_cast<uintptr_t>(fresh.numel()) * fresh.element_size();
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)fresh;
#endif
}

}  // namespace maskrcnn

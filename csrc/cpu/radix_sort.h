// Sorts scores in descending order, in linear time.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace maskrcnn {

// An integer key that decreases with the score, equal for equal scores; NaN is the highest, as in torch.sort.
template <typename T>
auto falling_key(T score) {
    using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    constexpr Key kSign = Key(1) << (8 * sizeof(T) - 1);
    if (score != score) return Key(0);
    score += T(0);  // -0 equals 0
    Key bits;
    std::memcpy(&bits, &score, sizeof(bits));
    const Key rising = bits & kSign ? ~bits : bits | kSign;
    return static_cast<Key>(~rising);
}

// The indices of `count` scores in descending order, stable: sorts by each byte of the keys, from the lowest on.
template <typename T>
std::vector<int32_t> order_descending(const T* scores, int64_t count) {
    using Key = decltype(falling_key(T()));
    struct Entry {
        Key key;
        int32_t position;
    };
    std::vector<Entry> entries(count), sorted(count);
    std::vector<std::array<int64_t, 256>> histogram(sizeof(Key), std::array<int64_t, 256>{});
    for (int64_t i = 0; i < count; ++i) {
        entries[i] = {falling_key(scores[i]), static_cast<int32_t>(i)};
        for (size_t byte = 0; byte < sizeof(Key); ++byte) ++histogram[byte][entries[i].key >> (8 * byte) & 255];
    }
    for (size_t byte = 0; byte < sizeof(Key) && count > 0; ++byte) {
        auto& first = histogram[byte];
        if (first[entries[0].key >> (8 * byte) & 255] == count) continue;  // all the same
        int64_t total = 0;
        for (int64_t& place : first) total += std::exchange(place, total);
        for (const Entry& entry : entries) sorted[first[entry.key >> (8 * byte) & 255]++] = entry;
        entries.swap(sorted);
    }
    std::vector<int32_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = entries[i].position;
    return order;
}

}  // namespace maskrcnn

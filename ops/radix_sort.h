// Stable least-significant-digit radix sort of (key, row) pairs on the CPU, over as many bits as the keys have.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace pcdet {

template <typename Key>
struct KeyedRow {
    Key key;
    int32_t row;
};

constexpr int kMaxDigitBits = 12;  // counters of one pass stay in the first two caches

// How many bits hold every value below `limit`.
inline int bits_below(uint64_t limit) {
    int bits = 1;
    while (bits < 64 && (uint64_t(1) << bits) < limit) ++bits;
    return bits;
}

// Rows in ascending order of keys that are below 2^bits; make(i) gives the key of row i, emit(place, row, key) takes the
// result. Equal keys keep their order.
template <typename Key, typename Make, typename Emit>
void radix_sort_rows(int64_t n, int bits, const Make& make, const Emit& emit) {
    const int passes = (bits + kMaxDigitBits - 1) / kMaxDigitBits;
    const int digit_bits = (bits + passes - 1) / passes;
    const Key mask = (Key(1) << digit_bits) - 1;
    std::unique_ptr<KeyedRow<Key>[]> from(new KeyedRow<Key>[n]), to(new KeyedRow<Key>[n]);
    std::vector<std::vector<uint32_t>> starts(passes, std::vector<uint32_t>(size_t(1) << digit_bits));
    for (int64_t i = 0; i < n; ++i) {
        const Key key = make(i);
        from[i] = {key, static_cast<int32_t>(i)};
        for (int pass = 0; pass < passes; ++pass) ++starts[pass][(key >> (pass * digit_bits)) & mask];
    }
    for (int pass = 0; pass < passes; ++pass) {
        uint32_t next = 0;
        for (uint32_t& start : starts[pass]) next += std::exchange(start, next);
        const int shift = pass * digit_bits;
        if (pass + 1 == passes) {
            for (int64_t i = 0; i < n; ++i) emit(starts[pass][(from[i].key >> shift) & mask]++, from[i].row, from[i].key);
        } else {
            for (int64_t i = 0; i < n; ++i) to[starts[pass][(from[i].key >> shift) & mask]++] = from[i];
            from.swap(to);
        }
    }
}

}  // namespace pcdet

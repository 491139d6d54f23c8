// Neighbours of voxels on the CPU: sorted keys and shifts of them run through side by side, so that nothing is searched.
#include "common.h"

#include <algorithm>
#include <vector>

namespace {

constexpr int64_t kChunk = 2048;  // keys of one task

// Rows first to last - 1 of the sorted keys: `places[k]` walks along keys + shifts[k], which ascend like the keys.
void find_rows(const int64_t* keys, const int64_t* order, int64_t n, const int64_t* shifts, int64_t k, int64_t first,
               int64_t last, int64_t* table) {
    std::vector<int64_t> places(k);
    for (int64_t j = 0; j < k; ++j) places[j] = std::lower_bound(keys, keys + n, keys[first] + shifts[j]) - keys;
    for (int64_t i = first; i < last; ++i) {
        int64_t* row = table + order[i] * k;
        for (int64_t j = 0; j < k; ++j) {
            const int64_t wanted = keys[i] + shifts[j];
            int64_t place = places[j];
            while (place < n && keys[place] < wanted) ++place;
            row[j] = place < n && keys[place] == wanted ? order[place] : -1;
            places[j] = place;
        }
    }
}

}  // namespace

// keys: [n], ascending, no two the same; order: [n], the row of each key; shifts: [k]; table: [n, k].
PCDET_API int pcdet_neighbours_cpu(const int64_t* keys, const int64_t* order, int64_t n, const int64_t* shifts, int64_t k,
                                   int64_t* table, int threads) {
    const int64_t chunks = (n + kChunk - 1) / kChunk;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        find_rows(keys, order, n, shifts, k, chunk * kChunk, std::min((chunk + 1) * kChunk, n), table);
    }
    return 0;
}

// Dynamic voxelisation on the CPU: the rank of each point's cell among the occupied ones, by marking cells in a bit map
// and counting bits. A grid whose map fits the cache, as one of pillars, has one map. For larger grids, points are shared
// out to buckets of neighbouring cells, each with a map that fits. Buckets keep the order of the points, and their ranks
// add up, so the result does not depend on the threads.
#include "point_cells.h"
#include "radix_sort.h"

#include <memory>
#include <vector>

namespace {

using namespace pcdet;

constexpr int kMostBuckets = 1 << 10;
constexpr int kLeastBucketBits = 15, kMostBucketBits = 24;
constexpr int64_t kMostMapCells = 1 << 22;  // a map of 512 kB

struct Entry {
    uint32_t cell;  // in the bucket; later the rank of that cell in the bucket
    int32_t row;
};

// Replaces the cells of points first to last - 1 by their ranks; before: bits set in the words of the map before.
PCDET_CLONES void rank_cells(int64_t* cells, int64_t first, int64_t last, const uint64_t* map, const uint32_t* before) {
    for (int64_t i = first; i < last; ++i) {
        if (cells[i] < 0) continue;
        const int64_t word = cells[i] >> 6;
        const uint64_t lower = map[word] & ((uint64_t(1) << (cells[i] & 63)) - 1);
        cells[i] = before[word] + __builtin_popcountll(lower);
    }
}

int64_t rank_by_one_map(int64_t* cells, int64_t n, int64_t limit, const CellDecoder& decode, int32_t* coords, int team) {
    const int64_t words = (limit + 63) >> 6;
    std::vector<uint64_t> maps(team * words);  // each thread marks its own; then the first one holds all
    std::vector<uint32_t> before(words + 1);
    uint64_t* map = maps.data();
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < team; ++t) {
            for (int64_t i = n * t / team; i < n * (t + 1) / team; ++i) {
                if (cells[i] >= 0) maps[t * words + (cells[i] >> 6)] |= uint64_t(1) << (cells[i] & 63);
            }
        }
#pragma omp single
        for (int64_t w = 0; w < words; ++w) {
            for (int t = 1; t < team; ++t) map[w] |= maps[t * words + w];
            before[w + 1] = before[w] + __builtin_popcountll(map[w]);
        }
#pragma omp for schedule(static) nowait
        for (int t = 0; t < team; ++t) rank_cells(cells, n * t / team, n * (t + 1) / team, map, before.data());
#pragma omp for schedule(static)
        for (int64_t w = 0; w < words; ++w) {
            int32_t* row = coords + 4 * int64_t(before[w]);
            for (uint64_t bits = map[w]; bits; bits &= bits - 1, row += 4) {
                decode.batched(w * 64 + __builtin_ctzll(bits), row);
            }
        }
    }
    return before.back();
}

// A bit map of a bucket's cells with a bit map of its words that are not 0, so that empty stretches cost nothing.
struct BucketBits {
    std::vector<uint64_t> words, filled;
    std::vector<uint32_t> before;  // bits set in the words before

    explicit BucketBits(int bits) : words(size_t(1) << (bits - 6)), filled(size_t(1) << (bits - 12)) {
        before.resize(words.size());
    }
};

// Replaces the cells of a bucket's points by their ranks, and lists the occupied cells; returns how many.
PCDET_CLONES int64_t rank_bucket(Entry* entries, int64_t n, BucketBits& map, uint32_t* occupied) {
    uint64_t *words = map.words.data(), *filled = map.filled.data();
    uint32_t* before = map.before.data();
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t cell = entries[i].cell;
        words[cell >> 6] |= uint64_t(1) << (cell & 63);
        filled[cell >> 12] |= uint64_t(1) << (cell >> 6 & 63);
    }
    uint32_t count = 0;
    for (size_t run = 0; run < map.filled.size(); ++run) {
        for (uint64_t used = filled[run]; used; used &= used - 1) {
            const uint32_t word = static_cast<uint32_t>(run * 64 + __builtin_ctzll(used));
            before[word] = count;
            for (uint64_t bits = words[word]; bits; bits &= bits - 1) occupied[count++] = word * 64 + __builtin_ctzll(bits);
        }
    }
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t word = entries[i].cell >> 6;
        const uint64_t lower = words[word] & ((uint64_t(1) << (entries[i].cell & 63)) - 1);
        entries[i].cell = before[word] + static_cast<uint32_t>(__builtin_popcountll(lower));
    }
    for (uint32_t i = 0; i < count; ++i) words[occupied[i] >> 6] = filled[occupied[i] >> 12] = 0;
    return count;
}

// Points of n shared out to buckets: where each bucket starts, chunk of points by chunk.
class Buckets {
   public:
    Buckets(int64_t limit, int chunks) : chunks_(chunks) {
        bits_ = std::max(bits_below(limit) - bits_below(kMostBuckets), kLeastBucketBits);
        count_ = ((limit - 1) >> bits_) + 1;
        places_.resize(chunks * count_);
    }

    int bits() const { return bits_; }
    int64_t count() const { return count_; }
    int64_t start(int64_t bucket) const { return bucket ? places_[(bucket * chunks_) - 1] : 0; }  // after `share_out`

    void count_points(const int64_t* cells, int64_t first, int64_t last, int chunk) {
        std::vector<int64_t> counts(count_);
        for (int64_t i = first; i < last; ++i) {
            if (cells[i] >= 0) ++counts[cells[i] >> bits_];
        }
        for (int64_t b = 0; b < count_; ++b) places_[b * chunks_ + chunk] = counts[b];
    }

    void sum_counts() {
        int64_t next = 0;
        for (int64_t& place : places_) next += std::exchange(place, next);
    }

    void share_out(const int64_t* cells, int64_t first, int64_t last, int chunk, Entry* entries) {
        const uint32_t mask = (uint32_t(1) << bits_) - 1;
        std::vector<int64_t> next(count_);
        for (int64_t b = 0; b < count_; ++b) next[b] = places_[b * chunks_ + chunk];
        for (int64_t i = first; i < last; ++i) {
            if (cells[i] < 0) continue;
            entries[next[cells[i] >> bits_]++] = {static_cast<uint32_t>(cells[i]) & mask, static_cast<int32_t>(i)};
        }
        for (int64_t b = 0; b < count_; ++b) places_[b * chunks_ + chunk] = next[b];
    }

   private:
    int chunks_, bits_;
    int64_t count_;
    std::vector<int64_t> places_;
};

int64_t rank_by_buckets(int64_t* cells, int64_t n, int64_t limit, const CellDecoder& decode, int32_t* coords, int team) {
    Buckets buckets(limit, team);
    std::unique_ptr<Entry[]> entries(new Entry[n]);
    std::unique_ptr<uint32_t[]> occupied(new uint32_t[n]);
    std::vector<int64_t> ranks(buckets.count() + 1);
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < team; ++t) buckets.count_points(cells, n * t / team, n * (t + 1) / team, t);
#pragma omp single
        buckets.sum_counts();
#pragma omp for schedule(static)
        for (int t = 0; t < team; ++t) buckets.share_out(cells, n * t / team, n * (t + 1) / team, t, entries.get());
        BucketBits map(buckets.bits());
#pragma omp for schedule(dynamic, 4)
        for (int64_t b = 0; b < buckets.count(); ++b) {
            const int64_t start = buckets.start(b), end = buckets.start(b + 1);
            if (end > start) ranks[b + 1] = rank_bucket(&entries[start], end - start, map, &occupied[start]);
        }
#pragma omp single
        for (int64_t b = 0; b < buckets.count(); ++b) ranks[b + 1] += ranks[b];
#pragma omp for schedule(dynamic, 4)
        for (int64_t b = 0; b < buckets.count(); ++b) {
            const int64_t start = buckets.start(b), end = buckets.start(b + 1);
            for (int64_t i = start; i < end; ++i) cells[entries[i].row] = ranks[b] + entries[i].cell;
            for (int64_t r = ranks[b]; r < ranks[b + 1]; ++r) {
                decode.batched((b << buckets.bits()) + occupied[start + r - ranks[b]], coords + 4 * r);
            }
        }
    }
    return ranks.back();
}

// For grids so large that the bit map of a bucket would be larger than the caches.
int64_t rank_by_sorting(int64_t* cells, int64_t n, int64_t limit, const CellDecoder& decode, int32_t* coords) {
    std::unique_ptr<int32_t[]> order(new int32_t[n]);
    const auto key = [=](int64_t i) { return static_cast<uint64_t>(cells[i] < 0 ? limit : cells[i]); };
    radix_sort_rows<uint64_t>(n, bits_below(limit + 1), key,
                              [&](int64_t place, int32_t row, uint64_t) { order[place] = row; });
    int64_t count = 0, previous = -1;
    for (int64_t place = 0; place < n; ++place) {
        int64_t& cell = cells[order[place]];
        if (cell < 0) break;  // points outside come last
        if (cell != previous) decode.batched(previous = cell, coords + 4 * count++);
        cell = count - 1;
    }
    return count;
}

// Lowers `lowest` and raises `highest` to the lowest and the highest frame.
PCDET_CLONES void find_frames(const int64_t* frame, int64_t n, int64_t& lowest, int64_t& highest) {
    int64_t low = lowest, high = highest;
    for (int64_t i = 0; i < n; ++i) {
        low = std::min(low, frame[i]);
        high = std::max(high, frame[i]);
    }
    lowest = low, highest = high;
}

}  // namespace

// Occupied cells in ascending order of (frame, cell) as coords [<= n, 4], totals[0] of them, and the voxel of each point
// [n], -1 outside. totals[1] and totals[2] are the lowest and the highest frame; when the lowest is negative or all
// frames have 2^62 cells or more, the rest is of no use.
PCDET_API int pcdet_dynamic_voxelize_cpu(const float* points, int64_t n, int64_t stride, const int64_t* frame,
                                         const VoxelGrid* grid, int32_t* coords, int64_t* voxel, int64_t* totals,
                                         int threads) {
    const int team = useful_threads(n, threads);
    const int64_t most_frames = (int64_t(1) << 62) / volume(*grid);
    int64_t lowest = 0, highest = -1;
#pragma omp parallel for num_threads(team) schedule(static) reduction(min : lowest) reduction(max : highest)
    for (int t = 0; t < team; ++t) {
        const int64_t first = n * t / team, last = n * (t + 1) / team;
        find_frames(frame + first, last - first, lowest, highest);
        if (lowest >= 0 && highest < most_frames - 1) {
            compute_cells(points, first, last, stride, frame, *grid, voxel);
        }
    }
    totals[0] = 0, totals[1] = lowest, totals[2] = highest;
    if (n == 0 || lowest < 0 || highest >= most_frames - 1) return 0;
    const int64_t limit = (totals[2] + 1) * volume(*grid);
    const CellDecoder decode(*grid);
    if (limit <= std::min(kMostMapCells, 64 * n)) {
        totals[0] = rank_by_one_map(voxel, n, limit, decode, coords, team);
        return 0;
    }
    const bool in_buckets = bits_below(limit) - bits_below(kMostBuckets) <= kMostBucketBits;
    totals[0] = in_buckets ? rank_by_buckets(voxel, n, limit, decode, coords, team)
                           : rank_by_sorting(voxel, n, limit, decode, coords);
    return 0;
}

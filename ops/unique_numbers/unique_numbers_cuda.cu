// The different numbers among many, ascending, and the place of each, on CUDA: numbers below a known end are bits of a
// map, and a running count of the bits says where a number stands. Nothing is sorted, and results repeat.
#include "common.h"
#include "cuda_launch.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;
constexpr int kWords = 8;  // 32-bit words of the map for each thread
constexpr int kTile = kThreads * kWords;

int blocks_for(int64_t n, int64_t share) { return static_cast<int>((n + share - 1) / share); }

__global__ void mark(const int64_t* numbers, int64_t n, uint32_t* map) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (i < n && numbers[i] >= 0) atomicOr(map + (numbers[i] >> 5), 1u << (numbers[i] & 31));
}

// Sum of `own` over the threads before this one; `total` becomes the sum over all. `shared` has kThreads numbers.
__device__ int sum_before(int own, int* shared, int* total) {
    const int me = threadIdx.x;
    shared[me] = own;
    __syncthreads();
    for (int step = 1; step < kThreads; step *= 2) {
        const int left = me >= step ? shared[me - step] : 0;
        __syncthreads();
        shared[me] += left;
        __syncthreads();
    }
    const int through = shared[me];
    *total = shared[kThreads - 1];
    __syncthreads();
    return through - own;
}

__device__ int bits_of(const uint32_t* map, int64_t first, int64_t words) {
    int bits = 0;
    for (int k = 0; k < kWords; ++k) bits += first + k < words ? __popc(map[first + k]) : 0;
    return bits;
}

__global__ void count_tiles(const uint32_t* map, int64_t words, int32_t* tiles) {
    __shared__ int shared[kThreads];
    int total;
    sum_before(bits_of(map, blockIdx.x * static_cast<int64_t>(kTile) + threadIdx.x * kWords, words), shared, &total);
    if (threadIdx.x == 0) tiles[blockIdx.x] = total;
}

// One block: counts of tiles become the counts before each, and the count of all.
__global__ void start_tiles(int32_t* tiles, int64_t count, int64_t* unique) {
    __shared__ int shared[kThreads];
    int before = 0;
    for (int64_t first = 0; first < count; first += kThreads) {
        const int64_t i = first + threadIdx.x;
        int total;
        const int start = before + sum_before(i < count ? tiles[i] : 0, shared, &total);
        if (i < count) tiles[i] = start;
        before += total;
    }
    if (threadIdx.x == 0) *unique = before;
}

__global__ void list_bits(const uint32_t* map, int64_t words, const int32_t* tiles, int32_t* before, int64_t* found) {
    __shared__ int shared[kThreads];
    const int64_t first = blockIdx.x * static_cast<int64_t>(kTile) + threadIdx.x * kWords;
    int total;
    int place = tiles[blockIdx.x] + sum_before(bits_of(map, first, words), shared, &total);
    for (int64_t word = first; word < first + kWords && word < words; ++word) {
        before[word] = place;
        for (uint32_t bits = map[word]; bits; bits &= bits - 1) {
            found[place++] = word * 32 + __ffs(static_cast<int>(bits)) - 1;
        }
    }
}

__global__ void places(const int64_t* numbers, int64_t n, const uint32_t* map, const int32_t* before, int64_t* place) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (i >= n) return;
    const int64_t number = numbers[i], word = number >> 5;
    place[i] = number < 0 ? -1 : before[word] + __popc(map[word] & ((1u << (number & 31)) - 1));
}

}  // namespace

// numbers [n], each below 32 * words, negative ones are none; map [words] of zeros, before [words] and
// tiles [ceil(words / 2048)] are room to work in. unique [1] becomes how many different numbers there are, the first
// `unique` places of found [n] those, ascending, and place [n] where each number stands among them, or -1.
PCDET_API int pcdet_unique_numbers_cuda(const int64_t* numbers, int64_t n, int64_t words, int32_t* map, int32_t* before,
                                        int32_t* tiles, int64_t* unique, int64_t* found, int64_t* place,
                                        cudaStream_t stream) {
    if (n == 0 || words == 0) return cudaGetLastError();
    uint32_t* bits = reinterpret_cast<uint32_t*>(map);
    const int all = blocks_for(n, kThreads), count = blocks_for(words, kTile);
    start_kernel(mark, all, kThreads, 0, stream, numbers, n, bits);
    start_kernel(count_tiles, count, kThreads, 0, stream, bits, words, tiles);
    start_kernel(start_tiles, 1, kThreads, 0, stream, tiles, static_cast<int64_t>(count), unique);
    start_kernel(list_bits, count, kThreads, 0, stream, bits, words, tiles, before, found);
    start_kernel(places, all, kThreads, 0, stream, numbers, n, bits, before, place);
    return cudaGetLastError();
}

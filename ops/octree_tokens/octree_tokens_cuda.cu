// Octrees as sequences of tokens on CUDA, all depths at once. Encoding: a leaf tells at which depths a new node begins with
// it, and sets the bits of those nodes in their parents. Decoding: in a breadth-first sequence the children of all tokens
// are numbered in the order of the tokens, so that every leaf finds its way up to the root.
#include "../serialize/serialize.h"
#include "cuda_launch.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;

unsigned blocks_for(int64_t size) { return static_cast<unsigned>((size + kThreads - 1) / kThreads); }

__device__ int64_t thread_number() { return blockIdx.x * int64_t(kThreads) + threadIdx.x; }

// The least depth at which the node of a key is another one than that of the key before it.
__global__ void find_starts(const int64_t* keys, int64_t n, int depth, int32_t* starts) {
    const int64_t i = thread_number();
    if (i >= n) return;
    int start = 0;
    if (i > 0 && keys[i] >> kBatchShift == keys[i - 1] >> kBatchShift) {
        start = depth;
        for (int64_t changed = (keys[i] ^ keys[i - 1]) >> 3; changed != 0; changed >>= 3) --start;
    }
    starts[i] = start;
}

__global__ void mark_children(const int64_t* keys, int64_t n, int depth, const int32_t* starts, const int64_t* ranks,
                              const int64_t* offsets, int* tokens) {
    const int64_t i = thread_number();
    if (i >= n) return;
    for (int d = starts[i] > 0 ? starts[i] - 1 : 0; d < depth; ++d) {
        const int64_t node = d == 0 ? keys[i] >> kBatchShift : ranks[d * n + i];
        atomicOr(tokens + offsets[d] + node, 1 << (keys[i] >> 3 * (depth - 1 - d) & 7));
    }
}

// For every child of a token: 8 times the number of the token, and its octant.
__global__ void link_children(const uint8_t* tokens, int64_t n, const int64_t* below, int64_t* links) {
    const int64_t t = thread_number();
    if (t >= n) return;
    int64_t child = below[t];
    for (int octant = 0; octant < 8; ++octant)
        if (tokens[t] >> octant & 1) links[child++] = 8 * t + octant;
}

// Keys of the leaves, which are the last children; token number clouds + j is child number j.
__global__ void climb(const int64_t* links, int64_t first, int64_t cells, int64_t clouds, int depth, int64_t* keys) {
    const int64_t leaf = thread_number();
    if (leaf >= cells) return;
    int64_t key = 0, token = clouds + first + leaf;
    for (int level = 0; level < depth; ++level) {
        const int64_t link = links[token - clouds];
        key |= (link & 7) << 3 * level;
        token = link >> 3;
    }
    keys[leaf] = token << kBatchShift | key;
}

}  // namespace

// keys: [n], ascending and distinct, z-order of cells at `depth`; starts: [n].
PCDET_API int pcdet_octree_token_starts_cuda(const int64_t* keys, int64_t n, int32_t depth, int32_t* starts, void* stream) {
    if (n == 0) return 0;
    start_kernel(find_starts, blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream), keys, n, depth, starts);
    return cudaGetLastError();
}

// starts: as found; ranks: [depth, n], the number of the node of each key among those of its depth (not read for depth 0,
// where it is the cloud); offsets: [depth], where the tokens of a depth begin; tokens: [room], zeros before.
PCDET_API int pcdet_octree_tokens_cuda(const int64_t* keys, int64_t n, int32_t depth, const int32_t* starts,
                                       const int64_t* ranks, const int64_t* offsets, int64_t room, int32_t* tokens,
                                       void* stream) {
    if (n == 0 || room == 0) return 0;
    start_kernel(mark_children, blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream), keys, n, depth, starts, ranks,
                 offsets, tokens);
    return cudaGetLastError();
}

// tokens: [n], as checked; below: [n], the children of all tokens before each; links: [n - clouds + cells], room; keys:
// [cells], ascending.
PCDET_API int pcdet_octree_of_tokens_cuda(const uint8_t* tokens, int64_t n, const int64_t* below, int64_t clouds,
                                          int32_t depth, int64_t cells, int64_t* links, int64_t* keys, void* stream) {
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    if (cells == 0) return 0;
    start_kernel(link_children, blocks_for(n), kThreads, 0, queue, tokens, n, below, links);
    start_kernel(climb, blocks_for(cells), kThreads, 0, queue, links, n - clouds, cells, clouds, depth, keys);
    return cudaGetLastError();
}

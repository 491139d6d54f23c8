// Softmax attention inside groups of rows, with a bias of the distance between their cells, on CUDA. A block computes 32
// queries of one head of one group, and walks along the group's keys and values tile by tile with a running softmax
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), so that no weights are stored. The backward
// pass computes them anew. Accumulation is float32; every sum has a fixed order, so that results repeat.
#include "attention_tiles.h"

namespace {

using namespace pcdet;

constexpr float kLog2E = 1.4426950408889634f;  // weights are powers of 2
constexpr int kEntries = 192;                  // of the table that a block of `table_gradients` adds up

// What the forward pass reads: [rows, 3, heads, dim], queries, keys and values.
template <typename T>
struct Head {
    const T *queries, *keys, *values;
    int64_t stride;  // of rows

    __device__ Head(const Groups& plan, const T* qkv, int64_t head)
        : queries(qkv + head * plan.dim),
          keys(queries + plan.heads * plan.dim),
          values(keys + plan.heads * plan.dim),
          stride(3 * plan.heads * plan.dim) {}
};

// The 32 slots of a block: those of one part of a group, for one head.
struct Place {
    int64_t group, head, begin;
    int slot, part;  // of this thread

    template <int S>
    static __device__ Place of_block(const Groups& plan) {
        const int64_t parts = (plan.slots + kQueries - 1) / kQueries, task = blockIdx.x / parts;
        return {task / plan.heads, task % plan.heads, blockIdx.x % parts * kQueries, static_cast<int>(threadIdx.x) / S,
                static_cast<int>(threadIdx.x) % S};
    }
};

// A running softmax of one query: the highest logit so far, and the sum of weights in relation to it.
struct Softmax {
    float most = -FLT_MAX, total = 0;

    // Takes up some logits, of which `shown` count, and leaves their weights; returns the factor for what was summed before.
    __device__ float add(float* logits, const bool* shown) {
        float highest = most;
#pragma unroll
        for (int i = 0; i < kStep; ++i)
            if (shown[i]) highest = fmaxf(highest, logits[i]);  // NaN is found again in the weights
        const float factor = exp2f(most - highest);
        most = highest;
        total *= factor;
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
            logits[i] = shown[i] ? exp2f(logits[i] - most) : 0.0f;
            total += logits[i];
        }
        return factor;
    }
};

// Logits, in powers of 2, of one query for some slots of a tile whose first rows are keys; returns whether it sees any.
template <int S>
__device__ bool find_logits(const Groups& plan, const float* table, const Slot& self, const float* query, int part,
                            const Tile<S>& tile, int begin, float* logits, bool* shown) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
        const Slot& other = tile.slots[begin + i];
        logits[i] = product<S>(query, tile.first[begin + i], part);
        shown[i] = sees(self, other);
        if (shown[i]) logits[i] = (logits[i] * plan.scale + bias_of(plan, table, self, other)) * kLog2E;
        any |= shown[i];
    }
    return any;
}

// A head's table, in shared memory where it fits into what the launch gives.
__device__ const float* bring_table(const Groups& plan, int64_t head, float* room) {
    if (plan.table == nullptr) return nullptr;
    const float* table = plan.table + head * plan.entries();
    if (plan.entries() > kMostTable) return table;
    for (int i = threadIdx.x; i < plan.entries(); i += blockDim.x) room[i] = table[i];
    return room;  // to be read after the barriers of `fetch`
}

// Slots that hold no row, and rows that read a slot which does not hold them.
__global__ void count_faults(Groups plan, unsigned long long* wrong) {
    const int64_t slots = plan.groups * plan.slots, i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
    int faults = i < slots && (plan.index[i] < 0 || plan.index[i] >= plan.rows);
    if (i < plan.rows) {
        const int64_t slot = plan.inverse[i];
        faults += slot < 0 || slot >= slots || plan.index[slot] != i;
    }
    if (faults) atomicAdd(wrong, static_cast<unsigned long long>(faults));
}

template <typename T, int S>
__global__ void __launch_bounds__(kQueries * S, 1) attend(Groups plan, const T* qkv, T* out) {
    __shared__ Tile<S> tile;
    PCDET_DYNAMIC_SHARED(float, room);
    const Place at = Place::of_block<S>(plan);
    const Head<T> head(plan, qkv, at.head);
    const float* table = bring_table(plan, at.head, room);
    const Slot self = slot_of(plan, at.group, at.begin + at.slot);
    float query[kChannels], sums[kChannels] = {}, weights[kStep];
    bool shown[kStep], any = false;
    read_channels<S>(self.row < 0 ? nullptr : head.queries + self.row * head.stride, plan.dim, at.part, query);
    Softmax softmax;
    for (int64_t begin = 0; begin < plan.slots; begin += kTile<S>) {
        fetch<S>(plan, at.group, begin, head.keys, head.stride, head.values, head.stride, tile);
#pragma unroll 1
        for (int first = 0; first < kTile<S>; first += kStep) {
            any |= find_logits<S>(plan, table, self, query, at.part, tile, first, weights, shown);
            const float factor = softmax.add(weights, shown);
#pragma unroll
            for (int i = 0; i < kChannels; ++i) sums[i] *= factor;
#pragma unroll
            for (int i = 0; i < kStep; ++i) add_row<S>(weights[i], tile.second[first + i], at.part, sums);
        }
    }
    if (!self.read) return;  // nobody reads this slot
    const float factor = any ? 1.0f / softmax.total : 0.0f;
    write_channels<S>(sums, plan.dim, at.part, factor, out + (self.row * plan.heads + at.head) * plan.dim);
}

// Of the softmax of one query, and the sum of its weights times the gradients that they get.
struct Statistics {
    float most, share, mean;  // share: 1 / sum of weights, or 0

    __device__ float weight(float logit) const { return exp2f(logit - most) * share; }
};

// The weight of a slot for a query, and the gradient of its logit.
struct Pair {
    float weight, dlogit;
};

// logit: the product of query and key; dweight: that of the value and the gradient of the output.
__device__ Pair weigh(const Groups& plan, const float* table, const Slot& query, const Slot& other, float logit,
                      float dweight, const Statistics& statistics) {
    if (!query.read || !sees(query, other)) return {0, 0};
    const float weight = statistics.weight((logit * plan.scale + bias_of(plan, table, query, other)) * kLog2E);
    return {weight, weight * (dweight - statistics.mean)};
}

// Gradients of the queries, and the statistics [rows, heads] that the other kernels of the backward pass need.
template <typename T, int S>
__global__ void __launch_bounds__(kQueries * S, 1) query_gradients(Groups plan, const T* qkv, const T* grad, Statistics* statistics, T* dqkv) {
    __shared__ Tile<S> tile;
    PCDET_DYNAMIC_SHARED(float, room);
    const Place at = Place::of_block<S>(plan);
    const Head<T> head(plan, qkv, at.head);
    const float* table = bring_table(plan, at.head, room);
    const Slot self = slot_of(plan, at.group, at.begin + at.slot);
    const int64_t place = self.row * plan.heads + at.head;
    float query[kChannels], dout[kChannels], sums[kChannels] = {}, weights[kStep];
    bool shown[kStep], any = false;
    read_channels<S>(self.row < 0 ? nullptr : head.queries + self.row * head.stride, plan.dim, at.part, query);
    read_channels<S>(self.row < 0 ? nullptr : grad + place * plan.dim, plan.dim, at.part, dout);
    Softmax softmax;
    float mean = 0;
    for (int64_t begin = 0; begin < plan.slots; begin += kTile<S>) {
        fetch<S>(plan, at.group, begin, head.keys, head.stride, head.values, head.stride, tile);
#pragma unroll 1
        for (int first = 0; first < kTile<S>; first += kStep) {
            any |= find_logits<S>(plan, table, self, query, at.part, tile, first, weights, shown);
            mean *= softmax.add(weights, shown);
#pragma unroll
            for (int i = 0; i < kStep; ++i) mean += weights[i] * product<S>(dout, tile.second[first + i], at.part);
        }
    }
    const float share = any ? 1.0f / softmax.total : 0.0f;
    const Statistics own{softmax.most, share, mean * share};
    for (int64_t begin = 0; begin < plan.slots; begin += kTile<S>) {
        if (plan.slots > kTile<S>) fetch<S>(plan, at.group, begin, head.keys, head.stride, head.values, head.stride, tile);
#pragma unroll (S > 4 ? 1 : 2)
        for (int i = 0; i < kTile<S>; ++i) {
            const float logit = product<S>(query, tile.first[i], at.part), dweight = product<S>(dout, tile.second[i], at.part);
            const Pair pair = weigh(plan, table, self, tile.slots[i], logit, dweight, own);
            add_row<S>(pair.dlogit, tile.first[i], at.part, sums);
        }
    }
    if (!self.read) return;
    if (at.part == 0) statistics[place] = own;
    write_channels<S>(sums, plan.dim, at.part, plan.scale, dqkv + self.row * head.stride + at.head * plan.dim);
}

// Gradients of the keys and values in every slot, [groups, slots, 2, heads, dim].
template <typename T, int S>
__global__ void __launch_bounds__(kQueries * S, 1) slot_gradients(Groups plan, const T* qkv, const T* grad, const Statistics* statistics, float* dslots) {
    __shared__ Tile<S> tile;
    __shared__ Statistics known[kTile<S>];
    PCDET_DYNAMIC_SHARED(float, room);
    const Place at = Place::of_block<S>(plan);
    const Head<T> head(plan, qkv, at.head);
    const float* table = bring_table(plan, at.head, room);
    const Slot self = slot_of(plan, at.group, at.begin + at.slot);
    const int64_t channels = plan.heads * plan.dim;
    float key[kChannels], value[kChannels], dkey[kChannels] = {}, dvalue[kChannels] = {};
    read_channels<S>(self.row < 0 ? nullptr : head.keys + self.row * head.stride, plan.dim, at.part, key);
    read_channels<S>(self.row < 0 ? nullptr : head.values + self.row * head.stride, plan.dim, at.part, value);
    for (int64_t begin = 0; begin < plan.slots; begin += kTile<S>) {
        fetch<S>(plan, at.group, begin, head.queries, head.stride, grad + at.head * plan.dim, channels, tile);
        for (int i = threadIdx.x; i < kTile<S>; i += kQueries * S)
            if (tile.slots[i].read) known[i] = statistics[tile.slots[i].row * plan.heads + at.head];
        __syncthreads();
#pragma unroll (S > 4 ? 1 : 2)
        for (int i = 0; i < kTile<S>; ++i) {
            const float logit = product<S>(key, tile.first[i], at.part), dweight = product<S>(value, tile.second[i], at.part);
            const Pair pair = weigh(plan, table, tile.slots[i], self, logit, dweight, known[i]);
            add_row<S>(pair.weight, tile.second[i], at.part, dvalue);
            add_row<S>(pair.dlogit, tile.first[i], at.part, dkey);
        }
    }
    if (at.begin + at.slot >= plan.slots) return;
    float* to = dslots + (at.group * plan.slots + at.begin + at.slot) * 2 * channels + at.head * plan.dim;
    write_channels<S>(dkey, plan.dim, at.part, plan.scale, to);
    write_channels<S>(dvalue, plan.dim, at.part, 1.0f, to + channels);
}

// Gradients of some entries of a head's table: partial sums [chunks, heads, entries], one for each chunk of the groups. A
// query adds to sums of its own, which lie in one bank of the shared memory.
template <typename T, int S>
__global__ void __launch_bounds__(kQueries * S, 1) table_gradients(Groups plan, const T* qkv, const T* grad, const Statistics* statistics, float* partial) {
    __shared__ Tile<S> tile;
    PCDET_DYNAMIC_SHARED(float, sums);  // [entries of this block, queries]
    const int slot = threadIdx.x / S, part = threadIdx.x % S, lowest = blockIdx.z * kEntries;
    const int64_t chunk = blockIdx.x, at = blockIdx.y;
    const int count = min(kEntries, plan.entries() - lowest);
    const Head<T> head(plan, qkv, at);
    const float* table = plan.table + at * plan.entries();
    for (int i = threadIdx.x; i < count * kQueries; i += kQueries * S) sums[i] = 0;
    for (int64_t group = chunk; group < plan.groups; group += gridDim.x) {
        for (int64_t first = 0; first < plan.slots; first += kQueries) {
            const Slot self = slot_of(plan, group, first + slot);
            const int64_t place = self.row * plan.heads + at;
            float query[kChannels], dout[kChannels];
            read_channels<S>(self.row < 0 ? nullptr : head.queries + self.row * head.stride, plan.dim, part, query);
            read_channels<S>(self.row < 0 ? nullptr : grad + place * plan.dim, plan.dim, part, dout);
            const Statistics known = self.read ? statistics[place] : Statistics{0, 0, 0};
            for (int64_t begin = 0; begin < plan.slots; begin += kTile<S>) {
                fetch<S>(plan, group, begin, head.keys, head.stride, head.values, head.stride, tile);
#pragma unroll (S > 4 ? 1 : 2)
                for (int i = 0; i < kTile<S>; ++i) {
                    const Slot& other = tile.slots[i];
                    const float logit = product<S>(query, tile.first[i], part);
                    const float dweight = product<S>(dout, tile.second[i], part);
                    const Pair pair = weigh(plan, table, self, other, logit, dweight, known);
                    if (part != 0 || !self.placed || !other.placed) continue;
                    for (int axis = 0; axis < 3; ++axis) {
                        const int entry = entry_of(plan, self, other, axis) - lowest;
                        if (entry >= 0 && entry < count) sums[entry * kQueries + slot] += pair.dlogit;
                    }
                }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kQueries * S) {
        float sum = 0;
        for (int j = 0; j < kQueries; ++j) sum += sums[i * kQueries + (i + j) % kQueries];  // each thread another bank
        partial[(chunk * plan.heads + at) * plan.entries() + lowest + i] = sum;
    }
}

// Untyped arguments, as they come.
struct Call {
    Groups plan;
    const void* qkv;
    cudaStream_t stream;

    int64_t entries() const { return plan.table == nullptr ? 0 : 3 * (2 * plan.bound + 1); }
    size_t shared() const { return entries() <= kMostTable ? entries() * sizeof(float) : 0; }
    int64_t blocks() const { return plan.groups * plan.heads * ((plan.slots + kQueries - 1) / kQueries); }
    bool is_covered() const {
        return plan.dim <= 16 * kChannels && blocks() < (int64_t(1) << 31) && plan.heads <= 65535 && entries() < (1 << 20);
    }
    template <typename T, int S, typename... Parameters, typename... Arguments>
    void start(void (*kernel)(Groups, const T*, Parameters...), const Arguments&... arguments) const {
        start_kernel(kernel, static_cast<unsigned>(blocks()), kQueries * S, shared(), stream, plan,
                     static_cast<const T*>(qkv), arguments...);
    }
};

// Calls launch.template with_lanes<T, S>() with as many lanes for a query as its channels need.
template <typename T, typename Launch>
int with_lanes(int64_t dim, const Launch& launch) {
    if (dim <= kChannels) return launch.template with_lanes<T, 1>();
    if (dim <= 2 * kChannels) return launch.template with_lanes<T, 2>();
    if (dim <= 4 * kChannels) return launch.template with_lanes<T, 4>();
    return launch.template with_lanes<T, 16>();
}

struct Forward : Call {
    void* out;

    template <typename T>
    int run() const {
        return ::with_lanes<T>(plan.dim, *this);
    }
    template <typename T, int S>
    int with_lanes() const {
        start<T, S>(attend<T, S>, static_cast<T*>(out));
        return cudaGetLastError();
    }
};

struct Backward : Call {
    const void* grad;
    Statistics* statistics;
    void* dqkv;
    float *dslots, *dtable;
    int64_t chunks;

    template <typename T>
    int run() const {
        return ::with_lanes<T>(plan.dim, *this);
    }
    template <typename T, int S>
    int with_lanes() const {
        const T* dout = static_cast<const T*>(grad);
        start<T, S>(query_gradients<T, S>, dout, statistics, static_cast<T*>(dqkv));
        start<T, S>(slot_gradients<T, S>, dout, statistics, dslots);
        if (plan.table != nullptr) {
            const int64_t passes = (entries() + kEntries - 1) / kEntries;
            const dim3 blocks(static_cast<unsigned>(chunks), static_cast<unsigned>(plan.heads), static_cast<unsigned>(passes));
            const size_t room = (entries() < kEntries ? entries() : kEntries) * kQueries * sizeof(float);
            start_kernel(table_gradients<T, S>, blocks, kQueries * S, room, stream, plan, static_cast<const T*>(qkv), dout,
                         statistics, dtable);
        }
        return cudaGetLastError();
    }
};

Groups groups_of(const int64_t* index, const int64_t* inverse, const uint8_t* valid, const int64_t* owner,
                 const int32_t* cells, const float* table, int64_t groups, int64_t slots, int64_t rows, int64_t heads,
                 int64_t dim, int64_t bound) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    return {index, inverse, valid, owner, cells, table, groups, slots, rows, heads, dim, bound, scale};
}

}  // namespace

// Shapes as in `Groups`; qkv [rows, 3, heads, dim] and out [rows, heads, dim] of the element type; wrong: [1], zero before,
// see `count_faults`; with faults, out means nothing. Returns -1 for sizes that it does not cover.
PCDET_API int pcdet_group_attention_cuda(const void* qkv, const int64_t* index, const int64_t* inverse, const uint8_t* valid,
                                         const int64_t* owner, const int32_t* cells, const float* table, int64_t groups,
                                         int64_t slots, int64_t rows, int64_t heads, int64_t dim, int64_t bound, void* out,
                                         int64_t* wrong, int type, void* stream) {
    const Groups plan = groups_of(index, inverse, valid, owner, cells, table, groups, slots, rows, heads, dim, bound);
    const Forward launch{{plan, qkv, static_cast<cudaStream_t>(stream)}, out};
    const int64_t most = groups * slots > rows ? groups * slots : rows;
    if (!launch.is_covered()) return -1;
    if (most > 0) {
        start_kernel(count_faults, static_cast<unsigned>((most + 255) / 256), 256, 0, launch.stream, plan,
                     reinterpret_cast<unsigned long long*>(wrong));
    }
    if (launch.blocks() == 0) return cudaGetLastError();
    return with_type(type, launch);
}

// After a forward pass without faults. grad as out. statistics: float [rows, heads, 3], room. dqkv: as qkv, of which the
// queries are written; dslots: float [groups, slots, 2, heads, dim], gradients of keys and values in each slot; dtable:
// float [chunks, heads, 3 (2 bound + 1)], partial sums, or null without a table; chunks: 1 to 65535.
PCDET_API int pcdet_group_attention_backward_cuda(
    const void* qkv, const int64_t* index, const int64_t* inverse, const uint8_t* valid, const int64_t* owner,
    const int32_t* cells, const float* table, int64_t groups, int64_t slots, int64_t rows, int64_t heads, int64_t dim,
    int64_t bound, const void* grad, float* statistics, void* dqkv, float* dslots, int64_t chunks, float* dtable, int type,
    void* stream) {
    const Groups plan = groups_of(index, inverse, valid, owner, cells, table, groups, slots, rows, heads, dim, bound);
    const Backward launch{{plan, qkv, static_cast<cudaStream_t>(stream)}, grad,   reinterpret_cast<Statistics*>(statistics),
                          dqkv,                                           dslots, dtable, chunks};
    if (launch.blocks() == 0) return 0;
    return launch.is_covered() ? with_type(type, launch) : -1;
}

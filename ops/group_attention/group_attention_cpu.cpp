// Softmax attention inside groups of rows, with a bias of the distance between their cells, on the CPU. A group's queries,
// keys and values lie side by side while its heads are computed; neither its logits nor its biases leave the first cache.
#pragma GCC optimize("fp-contract=fast")  // multiplication and addition in one, where the processor can

#include "../vector_math.h"

#include <algorithm>
#include <limits>
#include <vector>

// As PCDET_FUSED_CLONES, whose version for AVX-512 does not multiply and add in one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PCDET_ATTENTION_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PCDET_ATTENTION_CLONES
#endif

namespace {

using namespace pcdet;

struct Groups {
    const int64_t* index;    // [groups, slots], the row in each slot
    const int64_t* inverse;  // [rows], the flat slot that each row reads back
    const uint8_t* valid;    // [groups, slots], 0: the slot is seen by none; or null
    const int64_t* owner;    // [groups, slots], slots of different owners do not see each other; or null
    int64_t groups, slots, rows;
};

template <typename T>
struct Attention {
    Groups plan;
    const T* qkv;          // [rows, 3, heads, dim]
    const int32_t* cells;  // [rows, 3] as (z, y, x), negative: no place; or null
    const T* table;        // [heads, 3 (2 bound + 1) + 1], biases of distances along x, y, z, and a zero; or null
    int64_t heads, dim, bound;
    T* out;  // [rows, heads, dim]

    int64_t width() const { return (plan.slots + VectorOf<T>::width - 1) / VectorOf<T>::width * VectorOf<T>::width; }
    int64_t entries() const { return 3 * (2 * bound + 1) + 1; }
    // The rows of a group; the keys of a head, transposed; logits of a query, and what it sees.
    int64_t room() const { return 3 * plan.slots * heads * dim + (dim + 2) * width(); }
};

// For every pair of slots and each axis, the entry of the table; pairs without a place: the last one, which is 0.
template <typename T>
PCDET_HD void find_entries(const Attention<T>& a, const int64_t* rows, int32_t* entries) {
    const int64_t slots = a.plan.slots, width = a.width();
    const int32_t bound = static_cast<int32_t>(a.bound), none = static_cast<int32_t>(a.entries() - 1);
    for (int axis = 0; axis < 3; ++axis) {  // x, y, z
        const int32_t middle = bound + axis * (2 * bound + 1);
        for (int64_t i = 0; i < slots; ++i) {
            const int32_t *cell = a.cells + 3 * rows[i], at = cell[2 - axis];
            const bool placed = (cell[0] | cell[1] | cell[2]) >= 0;
            int32_t* line = entries + (axis * slots + i) * width;
            for (int64_t j = 0; j < slots; ++j) {
                const int32_t* other = a.cells + 3 * rows[j];
                const int32_t away = std::min(std::max(at - other[2 - axis], -bound), bound);
                line[j] = placed && (other[0] | other[1] | other[2]) >= 0 ? middle + away : none;
            }
            std::fill(line + slots, line + width, none);
        }
    }
}

// Products of a query with all keys of its group, which lie side by side for each channel.
template <typename T>
PCDET_HD void multiply_keys(const T* query, const T* keys, int64_t dim, int64_t width, T scale, T* logits) {
    constexpr int64_t kWidth = VectorOf<T>::width, kTile = 4 * kWidth;
    int64_t j = 0;
    for (; j + kTile <= width; j += kTile) {
        Vector<T> a{}, b{}, c{}, e{};
        for (int64_t d = 0; d < dim; ++d) {
            const T factor = query[d] * scale, *line = keys + d * width + j;
            a += factor * vector_at(line);
            b += factor * vector_at(line + kWidth);
            c += factor * vector_at(line + 2 * kWidth);
            e += factor * vector_at(line + 3 * kWidth);
        }
        put_vector(logits + j, a);
        put_vector(logits + j + kWidth, b);
        put_vector(logits + j + 2 * kWidth, c);
        put_vector(logits + j + 3 * kWidth, e);
    }
    for (; j < width; j += kWidth) {
        Vector<T> a{};
        for (int64_t d = 0; d < dim; ++d) a += query[d] * scale * vector_at(keys + d * width + j);
        put_vector(logits + j, a);
    }
}

// One query over all slots of its group: weights from logits, in place, and their sum. seen: 1 or 0 for each slot.
template <typename T>
PCDET_HD T to_weights(T* logits, const T* seen, int64_t width) {
    constexpr int64_t kWidth = VectorOf<T>::width;
    constexpr T kLowest = std::numeric_limits<T>::lowest();
    Vector<T> most = Vector<T>{} + kLowest, sum{};
    for (int64_t j = 0; j < width; j += kWidth) {
        const Vector<T> logit = vector_at(logits + j), shown = vector_at(seen + j) > T(0) ? logit : Vector<T>{} + kLowest;
        most = most > shown ? most : shown;  // NaN is found again in the weights
    }
    T highest = kLowest, total = 0;
    for (int i = 0; i < kWidth; ++i) highest = highest > most[i] ? highest : most[i];
    for (int64_t j = 0; j < width; j += kWidth) {
        const Vector<T> away = vector_at(logits + j) - highest, shown = vector_at(seen + j);
        const Vector<T> weight = shown > T(0) ? (away == away ? exp_of(away) : away) : Vector<T>{};
        put_vector(logits + j, weight);
        sum += weight;
    }
    for (int i = 0; i < kWidth; ++i) total += sum[i];
    return total;
}

// Whether all slots of a group see each other.
inline bool sees_all(const Groups& plan, int64_t group) {
    const int64_t first = group * plan.slots;
    for (int64_t j = first; j < first + plan.slots; ++j) {
        if (plan.valid != nullptr && !plan.valid[j]) return false;
        if (plan.owner != nullptr && plan.owner[j] != plan.owner[first]) return false;
    }
    return true;
}

// 1 for the slots that the slot i of a group sees, 0 for the others.
template <typename T>
void find_seen(const Groups& plan, int64_t group, int64_t i, T* seen) {
    const int64_t first = group * plan.slots;
    for (int64_t j = 0; j < plan.slots; ++j) {
        const bool valid = plan.valid == nullptr || plan.valid[first + j];
        seen[j] = valid && (plan.owner == nullptr || plan.owner[first + j] == plan.owner[first + i]) ? T(1) : T(0);
    }
}

template <typename T, int D>
PCDET_ATTENTION_CLONES void attend_group(const Attention<T>& a, int64_t group, T* scratch, int32_t* entries) {
    const int64_t slots = a.plan.slots, width = a.width(), dim = D ? D : a.dim, channels = a.heads * dim;
    const int64_t* rows = a.plan.index + group * slots;
    const bool all = sees_all(a.plan, group);
    const T scale = 1 / std::sqrt(static_cast<T>(dim));
    T *local = scratch, *keys = local + 3 * slots * channels, *logits = keys + dim * width, *seen = logits + width;
    for (int64_t j = 0; j < slots; ++j)  // in one go, since heads would fetch a line of each row at a time
        std::copy(a.qkv + rows[j] * 3 * channels, a.qkv + (rows[j] + 1) * 3 * channels, local + j * 3 * channels);
    if (a.table != nullptr) find_entries(a, rows, entries);
    std::fill(keys, keys + dim * width, T(0));
    std::fill(seen, seen + slots, T(1));
    std::fill(seen + slots, seen + width, T(0));
    for (int64_t head = 0; head < a.heads; ++head) {
        const T* table = a.table == nullptr ? nullptr : a.table + head * a.entries();
        const T *queries = local + head * dim, *values = queries + 2 * channels;  // rows of 3 channels
        for (int64_t j = 0; j < slots; ++j)
            for (int64_t d = 0; d < dim; ++d) keys[d * width + j] = queries[(3 * j + 1) * channels + d];
        for (int64_t i = 0; i < slots; ++i) {
            if (a.plan.inverse[rows[i]] != group * slots + i) continue;  // nobody reads this slot
            if (!all) find_seen(a.plan, group, i, seen);
            multiply_keys(queries + 3 * i * channels, keys, dim, width, scale, logits);
            if (table != nullptr) {
                const int32_t *x = entries + i * width, *y = x + slots * width, *z = y + slots * width;
                for (int64_t j = 0; j < width; ++j) logits[j] += table[x[j]] + table[y[j]] + table[z[j]];
            }
            const T total = to_weights(logits, seen, width);
            T sums[D ? D : 256] = {};
            for (int64_t j = 0; j < slots; ++j)
                for (int64_t d = 0; d < dim; ++d) sums[d] += logits[j] * values[3 * j * channels + d];
            T* out = a.out + rows[i] * channels + head * dim;
            for (int64_t d = 0; d < dim; ++d) out[d] = total == 0 ? 0 : sums[d] / total;
        }
    }
}

// Slots that hold no row, and rows that read a slot which does not hold them.
int64_t count_faults(const Groups& plan) {
    const int64_t slots = plan.groups * plan.slots;
    int64_t faults = 0;
    for (int64_t i = 0; i < slots; ++i) faults += plan.index[i] < 0 || plan.index[i] >= plan.rows;
    for (int64_t r = 0; r < plan.rows; ++r) {
        const int64_t slot = plan.inverse[r];
        faults += slot < 0 || slot >= slots || plan.index[slot] != r;
    }
    return faults;
}

template <typename T, int D>
void attend_all(const Attention<T>& a, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> scratch(a.room());
        std::vector<int32_t> entries(a.table == nullptr ? 0 : 3 * a.plan.slots * a.width());
#pragma omp for schedule(static)
        for (int64_t group = 0; group < a.plan.groups; ++group)
            attend_group<T, D>(a, group, scratch.data(), entries.data());
    }
}

template <typename T>
void attend(const Attention<T>& a, int threads) {
    if (a.dim == 16) return attend_all<T, 16>(a, threads);
    if (a.dim == 32) return attend_all<T, 32>(a, threads);
    attend_all<T, 0>(a, threads);
}

}  // namespace

// Shapes as in `Groups` and `Attention`; dim at most 256; out: zeros; wrong: [1], see `count_faults`, with which
// nothing is computed.
#define PCDET_GROUP_ATTENTION(T, name)                                                                                    \
    PCDET_API int pcdet_group_attention_##name##_cpu(                                                                     \
        const T* qkv, const int64_t* index, const int64_t* inverse, const uint8_t* valid, const int64_t* owner,           \
        const int32_t* cells, const T* table, int64_t groups, int64_t slots, int64_t rows, int64_t heads, int64_t dim,    \
        int64_t bound, T* out, int64_t* wrong, int threads) {                                                             \
        const Groups plan{index, inverse, valid, owner, groups, slots, rows};                                             \
        *wrong = count_faults(plan);                                                                                      \
        if (*wrong == 0) attend(Attention<T>{plan, qkv, cells, table, heads, dim, bound, out}, threads);              \
        return 0;                                                                                                         \
    }

PCDET_GROUP_ATTENTION(float, float32)
PCDET_GROUP_ATTENTION(double, float64)

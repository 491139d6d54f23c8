// A 3x3 convolution of maps [batch, height, width, channels] with a border of zeros, bias, an addend and ReLU, on the
// CPU. Tiles of 4x4 cells whose surroundings are those of most of the map are computed once: in a bird's-eye view no
// point reaches most of it, and every convolution gives the same there.
#pragma GCC optimize("fp-contract=fast")

#include "row_panels.h"
#include "winograd.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace {

using namespace pcdet;

struct Conv {
    const float* x;
    const float* weight;  // [36, out / 16, in, 16]
    const float* bias;
    const float* addend;  // as out, or null
    float* out;
    int64_t batch, height, width, in, channels;
    bool relu;

    int64_t rows() const { return (height + kTile - 1) / kTile; }
    int64_t columns() const { return (width + kTile - 1) / kTile; }
    int64_t tiles() const { return batch * rows() * columns(); }
};

// Where a tile begins.
struct Place {
    int64_t frame, y, x;
};

Place place_of(const Conv& c, int64_t tile) {
    const int64_t row = tile / c.columns();
    return {row / c.rows(), row % c.rows() * kTile, tile % c.columns() * kTile};
}

const float* cell(const Conv& c, int64_t frame, int64_t y, int64_t x) {
    return c.x + ((frame * c.height + y) * c.width + x) * c.in;
}

// 16 channels of a tile's surroundings at the 36 points, to v [36, point_step].
template <bool Inside>
PCDET_HD void transform_channels(const Conv& c, Place p, int64_t channel, float* v, int64_t point_step) {
    alignas(64) Lanes d[kPoints];
    for (int i = 0; i < kPatch; ++i) {
        Lanes row[kPatch];
        for (int j = 0; j < kPatch; ++j) {
            const int64_t y = p.y + i - 1, x = p.x + j - 1;
            const bool inside = Inside || (y >= 0 && y < c.height && x >= 0 && x < c.width);
            row[j] = inside ? lanes_at(cell(c, p.frame, y, x) + channel) : Lanes{};
        }
        to_points(row, 1, d + i * kPatch, 1);
    }
    for (int j = 0; j < kPatch; ++j) {
        Lanes column[kPatch];
        to_points(d + j, kPatch, column, 1);
        for (int i = 0; i < kPatch; ++i)
            std::memcpy(v + (i * kPatch + j) * point_step + channel, &column[i], sizeof(Lanes));
    }
}

// Ask for 16 channels of the cells that a tile adds to the surroundings of the one before it.
PCDET_HD void fetch_channels(const Conv& c, Place p, int64_t channel) {
    const int64_t first = std::max<int64_t>(p.y - 1, 0), last = std::min(p.y + kTile + 1, c.height);
    for (int64_t y = first; y < last; ++y)
        for (int64_t x = p.x + 1; x < std::min(p.x + 1 + kTile, c.width); ++x)
            __builtin_prefetch(cell(c, p.frame, y, x) + channel, 0, 2);
}

// The surroundings of a tile at the 36 points, to v [36, point_step], while the next tile's come from memory.
PCDET_HD void transform_input(const Conv& c, Place p, Place next, float* v, int64_t point_step) {
    const bool inside = p.y > 0 && p.x > 0 && p.y + kTile < c.height && p.x + kTile < c.width;
    for (int64_t channel = 0; channel < c.in; channel += kLanes) {
        fetch_channels(c, next, channel);
        if (inside) transform_channels<true>(c, p, channel, v, point_step);
        else transform_channels<false>(c, p, channel, v, point_step);
    }
}

// A tile of 16 channels from the products m [36, point_step]; to y [16 cells].
PCDET_HD void transform_output(const float* m, int64_t point_step, Lanes* y) {
    alignas(64) Lanes d[kPoints], half[kTile * kPatch];
    for (int i = 0; i < kPoints; ++i) d[i] = lanes_at(m + i * point_step);
    for (int j = 0; j < kPatch; ++j) from_points(d + j, kPatch, half + j, kPatch);
    for (int i = 0; i < kTile; ++i) from_points(half + i * kPatch, 1, y + i * kTile, 1);
}

// What the convolution gives in one cell, with bias, addend and ReLU, to 16 channels of the output.
PCDET_HD void put(const Conv& c, int64_t offset, Lanes y) {
    if (c.addend) y += lanes_at(c.addend + offset);
    if (c.relu) y = y < 0.0f ? Lanes{} : y;  // keeps NaN
    std::memcpy(c.out + offset, &y, sizeof(y));
}

// Where tiles go that stand for others: the cells [16, channels] before addend and ReLU. Null for all others.
template <int Panels>
PCDET_HD void put_tile(const Conv& c, Place p, const float* m, int64_t point_step, int64_t first, float* pattern) {
    for (int panel = 0; panel < Panels; ++panel) {
        alignas(64) Lanes y[kTile * kTile];
        const int64_t channel = first + panel * kLanes;
        transform_output(m + panel * kLanes, point_step, y);
        const Lanes bias = lanes_at(c.bias + channel);
        for (int i = 0; i < kTile; ++i)
            for (int j = 0; j < kTile; ++j) {
                const Lanes sum = y[i * kTile + j] + bias;
                if (pattern) std::memcpy(pattern + (i * kTile + j) * c.channels + channel, &sum, sizeof(sum));
                else if (p.y + i < c.height && p.x + j < c.width)
                    put(c, ((p.frame * c.height + p.y + i) * c.width + p.x + j) * c.channels + channel, sum);
            }
    }
}

// Room for the values of some tiles at the 36 points, each from the start of a cache line. The points begin at different
// places of a page: at the same place of all they would take each other's places in the caches.
int64_t point_step(int64_t count, int64_t width) { return count * width + kLanes; }

struct Free {
    void operator()(float* room) const { ::operator delete[](room, std::align_val_t(64)); }
};

using Room = std::unique_ptr<float[], Free>;

Room room(int64_t count, int64_t width) {
    return Room(new (std::align_val_t(64)) float[kPoints * point_step(count, width)]);
}

// Some tiles; v and m are room for [36, count, in] and [36, count, 16 * Panels].
struct Convolve {
    template <int Rows, int Panels>
    static PCDET_HD void run(const Conv& c, const int64_t* tiles, int64_t count, float* v, float* m, float* pattern) {
        const int64_t width = Panels * kLanes, panel_size = c.in * kLanes, panels = c.channels / kLanes;
        const int64_t v_step = point_step(count, c.in), m_step = point_step(count, width);
        for (int64_t i = 0; i < count; ++i)
            transform_input(c, place_of(c, tiles[i]), place_of(c, tiles[std::min(i + 1, count - 1)]), v + i * c.in, v_step);
        for (int64_t panel = 0; panel < panels; panel += Panels) {
            for (int64_t point = 0; point < kPoints; ++point)
                multiply<Rows, Panels>(v + point * v_step, c.weight + (point * panels + panel) * panel_size, count, c.in,
                                       m + point * m_step);
            for (int64_t i = 0; i < count; ++i)
                put_tile<Panels>(c, place_of(c, tiles[i]), m + i * width, m_step, panel * kLanes, pattern);
        }
    }
};

using Convolution = Versions<Convolve, 6, const Conv&, const int64_t*, int64_t, float*, float*, float*>;

// The 4x4 cells at a multiple of 4 that most of the map repeats, as far as a few samples tell, and whether any repeat.
struct Pattern {
    Place place;
    bool repeats;
    int period;  // 1, 2 or 4: after how many cells, along both axes, it repeats itself
};

bool same_cell(const Conv& c, const float* a, const float* b) { return std::memcmp(a, b, c.in * sizeof(float)) == 0; }

const float* pattern_cell(const Conv& c, const Pattern& p, int64_t y, int64_t x) {
    return cell(c, p.place.frame, p.place.y + y % kTile, p.place.x + x % kTile);
}

bool same_tile(const Conv& c, Place a, Place b) {
    for (int i = 0; i < kTile; ++i)
        if (std::memcmp(cell(c, a.frame, a.y + i, a.x), cell(c, b.frame, b.y + i, b.x), kTile * c.in * sizeof(float)))
            return false;
    return true;
}

bool repeats_after(const Conv& c, Place p, int period) {
    for (int i = 0; i < kTile; ++i)
        for (int j = 0; j < kTile; ++j)
            if (!same_cell(c, cell(c, p.frame, p.y + i, p.x + j),
                           cell(c, p.frame, p.y + i % period, p.x + j % period)))
                return false;
    return true;
}

Pattern find_pattern(const Conv& c) {
    constexpr int64_t kSamples = 61;
    const int64_t rows = c.height / kTile, columns = c.width / kTile, whole = c.batch * rows * columns;
    Pattern best{{0, 0, 0}, false, kTile};
    std::vector<Place> samples;
    for (int64_t s = 0; s < kSamples && whole >= kSamples; ++s) {
        const int64_t tile = (2 * s + 1) * whole / (2 * kSamples), row = tile / columns;
        samples.push_back({row / rows, row % rows * kTile, tile % columns * kTile});
    }
    size_t most = 1;
    for (size_t i = 0; i < samples.size(); ++i) {
        size_t count = 1;
        for (size_t j = i + 1; j < samples.size(); ++j) count += same_tile(c, samples[i], samples[j]);
        if (count > most) best = {samples[i], true, kTile}, most = count;
    }
    if (best.repeats) best.period = repeats_after(c, best.place, 1) ? 1 : repeats_after(c, best.place, 2) ? 2 : 4;
    return best;
}

// Whether each cell [batch, height, width] is what the pattern has in its place.
std::unique_ptr<uint8_t[]> cells_of_pattern(const Conv& c, const Pattern& pattern, int threads) {
    std::unique_ptr<uint8_t[]> same(new uint8_t[c.batch * c.height * c.width]);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < c.batch * c.height; ++row)
        for (int64_t x = 0; x < c.width; ++x) {
            const int64_t frame = row / c.height, y = row % c.height;
            same[row * c.width + x] = same_cell(c, cell(c, frame, y, x), pattern_cell(c, pattern, y, x));
        }
    return same;
}

bool is_pattern(const Conv& c, const uint8_t* same, Place p) {
    if (p.y == 0 || p.x == 0 || p.y + kTile >= c.height || p.x + kTile >= c.width) return false;
    for (int64_t y = p.y - 1; y <= p.y + kTile; ++y)
        for (int64_t x = p.x - 1; x <= p.x + kTile; ++x)
            if (!same[(p.frame * c.height + y) * c.width + x]) return false;
    return true;
}

// The tiles to compute, and those that are the pattern.
void divide_tiles(const Conv& c, const Pattern& pattern, int threads, std::vector<int64_t>& own,
                  std::vector<int64_t>& shared) {
    std::unique_ptr<uint8_t[]> same;
    if (pattern.repeats) same = cells_of_pattern(c, pattern, threads);
    for (int64_t tile = 0; tile < c.tiles(); ++tile)
        (same && is_pattern(c, same.get(), place_of(c, tile)) ? shared : own).push_back(tile);
}

void compute_tiles(const Conv& c, const std::vector<int64_t>& tiles, int threads) {
    const int64_t size = std::clamp<int64_t>(4096 / c.in / 8 * 8, 8, 64), count = tiles.size();
    const auto convolve = Convolution::best(c.channels);
#pragma omp parallel num_threads(threads)
    {
        const auto v = room(size, c.in), m = room(size, 2 * kLanes);
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < count; first += size)
            convolve(c, tiles.data() + first, std::min(size, count - first), v.get(), m.get(), nullptr);
    }
}

PCDET_CLONES void put_pattern(const Conv& c, Place p, const float* pattern) {
    for (int i = 0; i < kTile; ++i)
        for (int j = 0; j < kTile; ++j) {
            const int64_t offset = ((p.frame * c.height + p.y + i) * c.width + p.x + j) * c.channels;
            for (int64_t k = 0; k < c.channels; k += kLanes)
                put(c, offset + k, lanes_at(pattern + (i * kTile + j) * c.channels + k));
        }
}

// All tiles of the pattern, from one of them. Rounding differs from cell to cell of a tile; what repeats after one or
// two cells in the input is to repeat in the output, too, so that the next convolution finds it again.
void share_tile(const Conv& c, const std::vector<int64_t>& tiles, int period, int threads) {
    const auto v = room(1, c.in), m = room(1, 2 * kLanes);
    std::vector<float> pattern(kTile * kTile * c.channels);
    Convolution::best(c.channels)(c, tiles.data(), 1, v.get(), m.get(), pattern.data());
    for (int i = 0; i < kTile; ++i)
        for (int j = 0; j < kTile; ++j) {
            const float* from = &pattern[(i % period * kTile + j % period) * c.channels];
            std::copy(from, from + c.channels, &pattern[(i * kTile + j) * c.channels]);
        }
    const int64_t count = tiles.size();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) put_pattern(c, place_of(c, tiles[i]), pattern.data());
}

}  // namespace

// x [batch, height, width, in], weight [36, channels / 16, in, 16] as `winograd_weight` makes it, bias [channels],
// addend [batch, height, width, channels] or null, out as addend; `in` and `channels` multiples of 16. *computed is the
// number of tiles that were not copies of another one.
PCDET_API int pcdet_winograd_conv_cpu(const float* x, const float* weight, const float* bias, const float* addend,
                                      int64_t batch, int64_t height, int64_t width, int64_t in, int64_t channels,
                                      int relu, float* out, int64_t* computed, int threads) {
    const Conv c{x, weight, bias, addend, out, batch, height, width, in, channels, relu != 0};
    std::vector<int64_t> own, shared;
    const Pattern pattern = find_pattern(c);
    divide_tiles(c, pattern, threads, own, shared);
    compute_tiles(c, own, threads);
    if (!shared.empty()) share_tile(c, shared, pattern.period, threads);
    *computed = own.size() + !shared.empty();
    return 0;
}

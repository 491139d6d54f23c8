// Transposed convolutions whose kernel is as long as their stride, so that every cell of the output belongs to one cell of
// the input, on the CPU without gradients, with what follows them in one pass: ReLU, an addend, scale and shift. Cells
// that equal one just before them, as most of a bird's-eye view does, take its products.
#pragma GCC optimize("fp-contract=fast")

#include "row_panels.h"

#include <algorithm>
#include <memory>

namespace {

using namespace pcdet;

constexpr int64_t kBlock = 64, kLookBack = 4;  // cells; both divide by the rows that are multiplied together or fit

struct Conv {
    const float* x;       // [batch * height * width, in]
    const float* panels;  // [factor * factor, channels / 16, in, 16]
    const float* bias;    // [channels]
    const float* addend;  // [batch, height * factor, width * factor, channels], or null
    const float* scale;   // [channels], or null
    const float* shift;   // as scale
    float* out;           // [batch, height * factor, width * factor, out_channels], from the first channel to write on
    int64_t cells, width, in, channels, factor, out_channels;
    bool relu;
};

using Floats = std::unique_ptr<float[]>;

struct Room {
    Floats rows, products;  // [kBlock, in], [kBlock, 32]
    int64_t row_of[kBlock];
};

// The different cells of a block, to room.rows, and the row of each. Returns how many there are.
PCDET_HD int64_t collect(const Conv& c, int64_t first, int64_t last, Room& room) {
    int64_t count = 0;
    for (int64_t i = 0; i < last - first; ++i) {
        const float* cell = c.x + (first + i) * c.in;
        int64_t row = count;
        for (int64_t back = 1; back <= std::min(i, kLookBack) && row == count; ++back)
            if (!std::memcmp(cell, cell - back * c.in, c.in * sizeof(float))) row = room.row_of[i - back];
        if (row == count) std::memcpy(room.rows.get() + count++ * c.in, cell, c.in * sizeof(float));
        room.row_of[i] = row;
    }
    return count;
}

// Sixteen channels of one cell of the output.
PCDET_HD void put(const Conv& c, int64_t cell, int64_t channel, Lanes y) {
    y += lanes_at(c.bias + channel);
    if (c.relu) y = y < 0.0f ? Lanes{} : y;  // keeps NaN
    if (c.addend) y += lanes_at(c.addend + cell * c.channels + channel);
    if (c.scale) y = y * lanes_at(c.scale + channel) + lanes_at(c.shift + channel);
    std::memcpy(c.out + cell * c.out_channels + channel, &y, sizeof(y));
}

struct Enlarge {
    template <int Rows, int Panels>
    static PCDET_HD void run(const Conv& c, int64_t first, int64_t last, Room& room) {
        // whole groups of rows: those behind the last are left from before, and so are their products
        const int64_t count = (collect(c, first, last, room) + Rows - 1) / Rows * Rows;
        for (int64_t place = 0; place < c.factor * c.factor; ++place)
            for (int64_t channel = 0; channel < c.channels; channel += Panels * kLanes) {
                const float* panel = c.panels + (place * c.channels + channel) * c.in;
                multiply<Rows, Panels>(room.rows.get(), panel, count, c.in, room.products.get());
                for (int64_t i = 0; i < last - first; ++i) {
                    const int64_t line = (first + i) / c.width, x = (first + i) % c.width;
                    const int64_t y = line * c.factor + place / c.factor;  // over all frames, one after another
                    const int64_t cell = (y * c.width + x) * c.factor + place % c.factor;
                    for (int j = 0; j < Panels; ++j)
                        put(c, cell, channel + j * kLanes,
                            lanes_at(room.products.get() + (room.row_of[i] * Panels + j) * kLanes));
                }
            }
    }
};

}  // namespace

// x [cells, in], lines of `width` cells; panels [factor * factor, channels / 16, in, 16]; bias [channels]; addend
// [cells * factor * factor, channels] or null; scale and shift [channels] or both null; out [cells * factor * factor,
// out_channels], of which the `channels` from `first` on are written. `channels` is a multiple of 16. Returns 1 where
// they do not fit into out_channels.
PCDET_API int pcdet_enlarging_conv_cpu(const float* x, const float* panels, const float* bias, const float* addend,
                                       const float* scale, const float* shift, int64_t cells, int64_t width, int64_t in,
                                       int64_t channels, int64_t factor, int64_t out_channels, int64_t first, int relu,
                                       float* out, int threads) {
    if (first + channels > out_channels) return 1;
    const Conv c{x, panels, bias, addend, scale, shift, out + first, cells, width, in, channels, factor, out_channels,
                 relu != 0};
    const auto enlarge = Versions<Enlarge, 4, const Conv&, int64_t, int64_t, Room&>::best(channels);
#pragma omp parallel num_threads(threads)
    {
        Room room{Floats(new float[kBlock * in]()), Floats(new float[kBlock * 2 * kLanes]), {}};
#pragma omp for schedule(dynamic)
        for (int64_t start = 0; start < cells; start += kBlock) enlarge(c, start, std::min(cells, start + kBlock), room);
    }
    return 0;
}

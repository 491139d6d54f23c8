// A sparse convolution on the CPU, without gradients: a block of outputs stays in the second cache while kernel cell after
// kernel cell adds the products of the inputs that it reads.
#pragma GCC optimize("fp-contract=fast")

#include "row_panels.h"

#include <algorithm>
#include <memory>

namespace {

using namespace pcdet;

constexpr int64_t kBlock = 512;  // outputs; divides by the rows that are multiplied together

struct Conv {
    const float* features;  // [inputs, in]
    const float* panels;    // [cells, channels / 16, in, 16]
    const float* bias;      // or null
    const int32_t* reads;   // [outputs, cells], -1 for none
    const float* addend;    // as out, or null
    float* out;             // [outputs, channels]
    int64_t outputs, cells, in, channels;
    bool relu;
};

using Floats = std::unique_ptr<float[]>;

struct Room {
    Floats rows, products;  // [kBlock, in], [kBlock, 32]
    int64_t place[kBlock];  // of each row among the outputs
};

// What one cell of the kernel adds to some outputs.
template <int Rows, int Panels>
PCDET_HD void add_cell(const Conv& c, int64_t cell, int64_t first, int64_t last, Room& room) {
    int64_t count = 0;
    for (int64_t o = first; o < last; ++o) {
        const int64_t row = c.reads[o * c.cells + cell];
        if (row < 0) continue;
        std::memcpy(room.rows.get() + count * c.in, c.features + row * c.in, c.in * sizeof(float));
        room.place[count++] = o;
    }
    if (!count) return;
    // whole groups of rows: those behind the last are left from before, and so are their products
    const int64_t padded = (count + Rows - 1) / Rows * Rows;
    for (int64_t channel = 0; channel < c.channels; channel += Panels * kLanes) {
        const float* panel = c.panels + (cell * c.channels + channel) * c.in;
        multiply<Rows, Panels>(room.rows.get(), panel, padded, c.in, room.products.get());
        for (int64_t i = 0; i < count; ++i)
            for (int j = 0; j < Panels; ++j) {
                float* to = c.out + room.place[i] * c.channels + channel + j * kLanes;
                const Lanes sum = lanes_at(to) + lanes_at(room.products.get() + (i * Panels + j) * kLanes);
                std::memcpy(to, &sum, sizeof(sum));
            }
    }
}

// The addend and ReLU, in a range of the output.
PCDET_HD void finish(const Conv& c, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += kLanes) {
        Lanes y = lanes_at(c.out + i);
        if (c.addend) y += lanes_at(c.addend + i);
        if (c.relu) y = y < 0.0f ? Lanes{} : y;  // keeps NaN
        std::memcpy(c.out + i, &y, sizeof(y));
    }
}

struct Convolve {
    template <int Rows, int Panels>
    static PCDET_HD void run(const Conv& c, int64_t first, int64_t last, Room& room) {
        for (int64_t o = first; o < last; ++o) {
            float* row = c.out + o * c.channels;
            if (c.bias) std::copy(c.bias, c.bias + c.channels, row);
            else std::fill(row, row + c.channels, 0.0f);
        }
        for (int64_t cell = 0; cell < c.cells; ++cell) add_cell<Rows, Panels>(c, cell, first, last, room);
        if (c.addend || c.relu) finish(c, first * c.channels, last * c.channels);
    }
};

// weight [channels, cells, in] to [cells, channels / 16, in, 16].
Floats panels_of(const float* weight, int64_t cells, int64_t in, int64_t channels, int threads) {
    Floats panels(new float[channels * cells * in]);
    const int64_t groups = channels / kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < cells * groups; ++task) {
        const int64_t cell = task / groups, group = task % groups;
        float* to = panels.get() + task * in * kLanes;
        for (int64_t k = 0; k < in; ++k)
            for (int64_t lane = 0; lane < kLanes; ++lane)
                to[k * kLanes + lane] = weight[((group * kLanes + lane) * cells + cell) * in + k];
    }
    return panels;
}

}  // namespace

// features [inputs, in], weight [channels, cells, in], bias [channels] or null, reads [outputs, cells]: rows of features,
// -1 for none; addend as out, or null; out [outputs, channels]; `channels` a multiple of 16. Returns 1 where a row is none
// of the features.
PCDET_API int pcdet_sparse_conv_cpu(const float* features, int64_t inputs, const float* weight, const float* bias,
                                    const int32_t* reads, int64_t outputs, int64_t cells, int64_t in, int64_t channels,
                                    const float* addend, int relu, float* out, int threads) {
    bool fits = true;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : fits)
    for (int64_t i = 0; i < outputs * cells; ++i) fits = fits && reads[i] < inputs;
    if (!fits) return 1;
    const Floats panels = panels_of(weight, cells, in, channels, threads);
    const Conv c{features, panels.get(), bias, reads, addend, out, outputs, cells, in, channels, relu != 0};
    const auto convolve = Versions<Convolve, 4, const Conv&, int64_t, int64_t, Room&>::best(channels);
#pragma omp parallel num_threads(threads)
    {
        Room room{Floats(new float[kBlock * in]()), Floats(new float[kBlock * 2 * kLanes]), {}};
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < outputs; first += kBlock)
            convolve(c, first, std::min(outputs, first + kBlock), room);
    }
    return 0;
}

// A linear layer of rows on the CPU, without gradients, with what follows it in one pass: bias, an addend and ReLU.
#pragma GCC optimize("fp-contract=fast")

#include "row_panels.h"

#include <algorithm>

namespace {

using namespace pcdet;

struct Linear {
    const float* x;       // [rows, in]
    const float* panels;  // [channels / 16, in, 16]
    const float* bias;    // [channels], or null
    const float* addend;  // as out, or null
    float* out;           // [rows, channels]
    int64_t rows, in, channels;
    bool relu;
};

// `Rows` rows and `Panels` panels of the output, whose sums start from the bias. All products of a number are added up in
// one chain, not in short sums: linear layers are some hundred numbers deep, convolutions some thousand.
template <int Rows, int Panels>
PCDET_HD void put_some(const Linear& l, int64_t row, int64_t channel) {
    Lanes sum[Rows][Panels];
    for (int j = 0; j < Panels; ++j) {
        const Lanes bias = l.bias ? lanes_at(l.bias + channel + j * kLanes) : Lanes{};
        for (int i = 0; i < Rows; ++i) sum[i][j] = bias;
    }
    add_products<Rows, Panels>(l.x + row * l.in, l.panels + channel * l.in, l.in, 0, l.in, sum);
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Panels; ++j) {
            const int64_t place = (row + i) * l.channels + channel + j * kLanes;
            Lanes y = sum[i][j];
            if (l.addend) y += lanes_at(l.addend + place);
            if (l.relu) y = y < 0.0f ? Lanes{} : y;  // keeps NaN
            std::memcpy(l.out + place, &y, sizeof(y));
        }
}

// All channels of some rows before the next ones, so that the output is written in long stretches.
struct Multiply {
    template <int Rows, int Panels>
    static PCDET_HD void run(const Linear& l, int64_t first, int64_t last) {
        int64_t row = first;
        for (; row + Rows <= last; row += Rows)
            for (int64_t channel = 0; channel < l.channels; channel += Panels * kLanes)
                put_some<Rows, Panels>(l, row, channel);
        for (; row < last; ++row)
            for (int64_t channel = 0; channel < l.channels; channel += Panels * kLanes)
                put_some<1, Panels>(l, row, channel);
    }
};

}  // namespace

// x [rows, in], panels [channels / 16, in, 16], bias [channels] or null, addend [rows, channels] or null, out as addend;
// `channels` is a multiple of 16.
PCDET_API int pcdet_packed_linear_cpu(const float* x, const float* panels, const float* bias, const float* addend,
                                      int64_t rows, int64_t in, int64_t channels, int relu, float* out, int threads) {
    const Linear l{x, panels, bias, addend, out, rows, in, channels, relu != 0};
    const auto multiply = Versions<Multiply, 4, const Linear&, int64_t, int64_t>::best(channels);
    const int64_t block = std::clamp<int64_t>(rows / (4 * threads) / 8 * 8, 8, 64);  // what a thread takes at a time
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < rows; first += block) multiply(l, first, std::min(rows, first + block));
    return 0;
}

// Rows copied to the places that name them, and zeros where a place names none. Of any type: words are copied.
#include "common.h"
#include "cuda_launch.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;

struct alignas(16) Sixteen {
    uint32_t parts[4];
};

template <typename Word>
__global__ void gather(const Word* rows, const int32_t* table, uint32_t words, uint32_t row_words, Word* out) {
    const uint32_t i = blockIdx.x * static_cast<uint32_t>(kThreads) + threadIdx.x;
    if (i >= words) return;
    const uint32_t place = i / row_words, word = i - place * row_words;
    const int64_t row = table[place];
    out[i] = row < 0 ? Word{} : rows[row * row_words + word];
}

template <typename Word>
int launch(const void* rows, const int32_t* table, int64_t places, int64_t row_bytes, void* out, cudaStream_t stream) {
    const uint32_t row_words = static_cast<uint32_t>(row_bytes / static_cast<int64_t>(sizeof(Word)));
    const uint32_t words = static_cast<uint32_t>(places * row_words);
    start_kernel(gather<Word>, static_cast<int>((words + kThreads - 1) / kThreads), kThreads, 0, stream,
                 static_cast<const Word*>(rows), table, words, row_words, static_cast<Word*>(out));
    return cudaGetLastError();
}

}  // namespace

// table [places]: a row of `rows`, each of row_bytes, or a negative number; out [places] rows. row_bytes * places must be
// below 2^32, row_bytes even.
PCDET_API int pcdet_gather_neighbours_cuda(const uint8_t* rows, const int32_t* table, int64_t places, int64_t row_bytes,
                                           uint8_t* out, cudaStream_t stream) {
    if (places == 0 || row_bytes == 0) return cudaGetLastError();
    const auto address = reinterpret_cast<uintptr_t>(rows) | reinterpret_cast<uintptr_t>(out);
    const auto fits = [&](uintptr_t bytes) { return (address | static_cast<uintptr_t>(row_bytes)) % bytes == 0; };
    if (fits(16)) return launch<Sixteen>(rows, table, places, row_bytes, out, stream);
    if (fits(4)) return launch<uint32_t>(rows, table, places, row_bytes, out, stream);
    return launch<uint16_t>(rows, table, places, row_bytes, out, stream);
}

// Octrees as sequences of tokens on the CPU: which children of each node are occupied, depth by depth from the roots.
#include "../serialize/serialize.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kCellMask = (int64_t(1) << kBatchShift) - 1;

// What is wrong with a sequence; see pcdet_ext/ops/octree_tokens.py.
enum Fault { kNone = 0, kEndsEarly = 1, kEmptyNode = 2, kEndsLate = 3 };

}  // namespace

// keys: [n], ascending and distinct, z-order of cells at `depth`; tokens: room for clouds + n * depth; counts: [depth],
// tokens of each depth.
PCDET_API int pcdet_octree_tokens_cpu(const int64_t* keys, int64_t n, int32_t depth, int64_t clouds, uint8_t* tokens,
                                      int64_t* counts, int) {
    std::vector<std::vector<uint8_t>> levels(depth);
    std::vector<int64_t> nodes(keys, keys + n);
    for (int d = depth - 1; d >= 0; --d) {  // each depth from the one below, whose nodes are replaced by their parents
        std::vector<uint8_t>& level = levels[d];
        int64_t parents = 0;
        for (const int64_t key : nodes) {
            const int64_t parent = (key & kCellMask) >> 3 | (key & ~kCellMask);
            if (parents == 0 || nodes[parents - 1] != parent) {
                nodes[parents++] = parent;
                level.push_back(0);
            }
            level.back() |= static_cast<uint8_t>(1 << (key & 7));
        }
        nodes.resize(parents);
    }
    std::vector<uint8_t> roots(clouds);
    for (size_t i = 0; i < nodes.size(); ++i) roots[nodes[i] >> kBatchShift] = levels[0][i];
    levels[0] = roots;
    for (int d = 0; d < depth; ++d) {
        counts[d] = static_cast<int64_t>(levels[d].size());
        tokens = std::copy(levels[d].begin(), levels[d].end(), tokens);
    }
    return 0;
}

// tokens: [n]; report: [4], how many cells there are, what is wrong (`Fault`), at which token, and at which depth.
PCDET_API int pcdet_octree_tokens_check_cpu(const uint8_t* tokens, int64_t n, int32_t depth, int64_t clouds, int64_t* report,
                                            int) {
    int64_t place = 0, nodes = clouds;
    const auto tell = [report](int64_t cells, int64_t fault, int64_t at, int64_t d) {
        const int64_t values[] = {cells, fault, at, d};
        std::copy(values, values + 4, report);
        return 0;
    };
    for (int d = 0; d < depth; ++d) {
        if (nodes > n - place) return tell(0, kEndsEarly, n, d);
        int64_t children = 0;
        for (const int64_t end = place + nodes; place < end; ++place) {
            if (d > 0 && tokens[place] == 0) return tell(0, kEmptyNode, place, d);
            children += __builtin_popcount(tokens[place]);
        }
        nodes = children;
    }
    return place < n ? tell(0, kEndsLate, place, depth) : tell(nodes, kNone, n, depth);
}

// tokens: as checked; keys: [cells], ascending.
PCDET_API int pcdet_octree_of_tokens_cpu(const uint8_t* tokens, int64_t clouds, int32_t depth, int64_t cells, int64_t* keys,
                                         int) {
    std::vector<int64_t> nodes(clouds), below;
    for (int64_t cloud = 0; cloud < clouds; ++cloud) nodes[cloud] = cloud << kBatchShift;
    for (int d = 0; d < depth; ++d) {
        below.clear();
        for (const int64_t node : nodes) {
            const int64_t eldest = (node & kCellMask) << 3 | (node & ~kCellMask);
            for (unsigned bits = *tokens++; bits; bits &= bits - 1) below.push_back(eldest | __builtin_ctz(bits));
        }
        nodes.swap(below);
    }
    if (static_cast<int64_t>(nodes.size()) != cells) return 1;
    std::copy(nodes.begin(), nodes.end(), keys);
    return 0;
}

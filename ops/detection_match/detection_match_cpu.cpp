// Matching of detections to ground truth the way the KITTI devkit does it: greedy, in file order, once to find the score
// thresholds and once for each of them. See pcdet_ext/evaluation/matching.py for the rules in words.
#include "common.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace {

constexpr int kMaxThresholds = 41;
enum State : int8_t { kOther = -1, kValid = 0, kIgnored = 1 };

struct Task {
    int64_t frames;
    const int64_t *truth_at, *found_at, *region_at, *pair_at, *region_pair_at;  // offsets [frames + 1]
    const int8_t *truth_state, *found_state;
    const double* overlap;         // per frame [truths, detections]
    const double* region_overlap;  // per frame [regions, detections], or null
    const double *score, *truth_alpha, *found_alpha;
    double min_overlap;
};

// The scores at which precision is read: about every 40th part of the recall.
std::vector<double> pick_thresholds(std::vector<double> scores, int64_t truths) {
    std::sort(scores.begin(), scores.end(), std::greater<double>());
    std::vector<double> picked;
    double recall = 0;
    const int64_t n = static_cast<int64_t>(scores.size());
    for (int64_t i = 0; i < n && picked.size() < kMaxThresholds; ++i) {
        const double here = static_cast<double>(i + 1) / truths;
        const double next = i + 1 < n ? static_cast<double>(i + 2) / truths : here;
        if (i + 1 < n && next - recall < recall - here) continue;
        picked.push_back(scores[i]);
        recall += 1.0 / (kMaxThresholds - 1);
    }
    return picked;
}

void true_scores(const Task& t, int64_t f, std::vector<uint8_t>& taken, std::vector<double>& scores) {
    const int64_t first = t.found_at[f], count = t.found_at[f + 1] - first;
    taken.assign(count, 0);
    for (int64_t g = t.truth_at[f]; g < t.truth_at[f + 1]; ++g) {
        if (t.truth_state[g] == kOther) continue;
        const double* overlap = t.overlap + t.pair_at[f] + (g - t.truth_at[f]) * count;
        int64_t best = -1;
        for (int64_t d = 0; d < count; ++d) {
            if (taken[d] || t.found_state[first + d] == kOther || !(overlap[d] > t.min_overlap)) continue;
            if (best < 0 || t.score[first + d] > t.score[first + best]) best = d;
        }
        if (best < 0) continue;
        taken[best] = 1;
        if (t.truth_state[g] == kValid && t.found_state[first + best] == kValid) scores.push_back(t.score[first + best]);
    }
}

struct Counts {
    double tp = 0, fp = 0, similarity = 0;
};

void count_frame(const Task& t, int64_t f, double threshold, std::vector<uint8_t>& taken, Counts& counts) {
    const int64_t first = t.found_at[f], count = t.found_at[f + 1] - first;
    taken.assign(count, 0);
    for (int64_t g = t.truth_at[f]; g < t.truth_at[f + 1]; ++g) {
        if (t.truth_state[g] == kOther) continue;
        const double* overlap = t.overlap + t.pair_at[f] + (g - t.truth_at[f]) * count;
        int64_t best = -1;
        bool best_ignored = false;
        for (int64_t d = 0; d < count; ++d) {
            const int8_t state = t.found_state[first + d];
            if (taken[d] || state == kOther || t.score[first + d] < threshold || !(overlap[d] > t.min_overlap)) continue;
            if (state == kValid && (best < 0 || best_ignored || overlap[d] > overlap[best])) {
                best = d;
                best_ignored = false;
            } else if (state == kIgnored && best < 0) {
                best = d;
                best_ignored = true;
            }
        }
        if (best < 0) continue;
        taken[best] = 1;
        if (t.truth_state[g] == kIgnored || best_ignored) continue;
        counts.tp += 1;
        counts.similarity += (1 + std::cos(t.truth_alpha[g] - t.found_alpha[first + best])) / 2;
    }
    const int64_t regions = t.region_overlap ? t.region_at[f + 1] - t.region_at[f] : 0;
    for (int64_t d = 0; d < count; ++d) {
        if (taken[d] || t.found_state[first + d] != kValid || t.score[first + d] < threshold) continue;
        bool in_region = false;
        for (int64_t r = 0; r < regions && !in_region; ++r) {
            in_region = t.region_overlap[t.region_pair_at[f] + r * count + d] > t.min_overlap;
        }
        if (!in_region) counts.fp += 1;
    }
}

}  // namespace

// thresholds, tp, fp, similarity: [41]; *used is how many of them count.
PCDET_API int pcdet_detection_match_cpu(int64_t frames, const int64_t* truth_at, const int64_t* found_at,
                                        const int64_t* region_at, const int64_t* pair_at, const int64_t* region_pair_at,
                                        const int8_t* truth_state, const int8_t* found_state, const double* overlap,
                                        const double* region_overlap, const double* score, const double* truth_alpha,
                                        const double* found_alpha, double min_overlap, double* thresholds, double* tp,
                                        double* fp, double* similarity, int64_t* used, int) {
    const Task task{frames,  truth_at,       found_at, region_at,   pair_at,     region_pair_at, truth_state, found_state,
                    overlap, region_overlap, score,    truth_alpha, found_alpha, min_overlap};
    std::vector<uint8_t> taken;
    std::vector<double> scores;
    std::vector<int64_t> busy;  // frames in which something can count
    int64_t truths = 0;
    for (int64_t f = 0; f < frames; ++f) {
        truths += std::count(truth_state + truth_at[f], truth_state + truth_at[f + 1], kValid);
        const auto matters = [](int8_t state) { return state != kOther; };
        const bool any_truth = std::any_of(truth_state + truth_at[f], truth_state + truth_at[f + 1], matters);
        const bool any_found = std::any_of(found_state + found_at[f], found_state + found_at[f + 1],
                                           [](int8_t state) { return state == kValid; });
        if (any_truth || any_found) busy.push_back(f);
    }
    for (int64_t f : busy) true_scores(task, f, taken, scores);
    const std::vector<double> picked = pick_thresholds(scores, std::max<int64_t>(truths, 1));
    *used = static_cast<int64_t>(picked.size());
    for (size_t k = 0; k < picked.size(); ++k) {
        Counts counts;
        for (int64_t f : busy) count_frame(task, f, picked[k], taken, counts);
        thresholds[k] = picked[k];
        tp[k] = counts.tp;
        fp[k] = counts.fp;
        similarity[k] = counts.similarity;
    }
    return 0;
}

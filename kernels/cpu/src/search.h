// Search of the cpu provider: the k nearest rows of up to 128 queries, in one pass over the bank.
#pragma once

#include "bank.h"

namespace {

struct Query {
    bool open = true;  // still to be searched
    double norm = 0, lost = 0;
    float limit = 0;
    double kth = 0;
    int64_t kept = 0;
};

// Uninitialized memory; it is written before it is read.
template <typename T>
std::unique_ptr<T[]> uninitialized(int64_t n) {
    return std::unique_ptr<T[]>(new T[n]);
}

struct Tile {
    const Bank &bank;
    const int64_t count, k, capacity;
    std::vector<Query> query;
    std::vector<float> point, factor;
    std::vector<int32_t> quantized;
    std::vector<double> wide;
    std::unique_ptr<float[]> score, value, sample;
    std::unique_ptr<int32_t[]> position_;

    Tile(const Bank &bank, int64_t count, int64_t k)
        : bank(bank), count(count), k(k), capacity(4 * k + 4096), query(count), point(count * bank.placed),
          factor(count), quantized(count * bank.pairs), wide(bank.placed), score(uninitialized<float>(count * kScoreStride)),
          value(uninitialized<float>(count * width())), sample(uninitialized<float>(width())),
          position_(uninitialized<int32_t>(count * width())) {}

    int64_t width() const { return capacity + kChunk + 32; }
    float *values(int64_t q) { return value.get() + q * width(); }
    int32_t *positions(int64_t q) { return position_.get() + q * width(); }

    void prepare(const float *queries);
    double error(const Query &q, double kth) const;
    bool within_reach(const Query &q) const;
    void scan(const std::vector<int64_t> &active, bool sampled);
    void first_limit(int64_t q, int64_t slot);
    bool compact(int64_t q);
    int64_t settle(int64_t q, const float *vector, int32_t *rows, int32_t *ties, int32_t *tied);
};

void Tile::prepare(const float *queries) {
    std::vector<int16_t> some(2 * bank.pairs);
    for (int64_t q = 0; q < count; ++q) {
        const float *vector = queries + q * bank.columns;
        float *at = point.data() + q * bank.placed;
        query[q].open = place(bank, vector, wide.data(), at);
        if (bank.rank == kCosine)
            query[q].open &= std::any_of(vector, vector + bank.columns, [](float x) { return x != 0; });
        if (!query[q].open || bank.rank == kL1) continue;
        std::fill(some.begin(), some.end(), int16_t(0));
        const Rounded it = round_to_int16(at, bank.placed, some.data());
        put_query(bank, some.data(), quantized.data() + q * bank.pairs);
        query[q].norm = it.norm, query[q].lost = it.lost, factor[q] = -2 * it.scale;
        query[q].open = within_reach(query[q]);
    }
}

bool Tile::within_reach(const Query &q) const {
    const double relative = q.norm >= kTiny ? q.lost / q.norm : 0;
    return bank.lost * (1 + relative) + relative < 1. / 25;
}

// e of provider.py, for the score s - |x|² = `kth`.
double Tile::error(const Query &q, double kth) const {
    const double columns = double(bank.placed);
    if (bank.rank == kL1) {
        const double gamma = (columns + 8) * kRound / (1 - (columns + 8) * kRound);
        return gamma * kth + columns * 0x1p-120 * (1 + kth);
    }
    const double distance = std::sqrt(std::max(0.0, kth + q.norm * q.norm));
    const double reach = std::min(bank.widest, 2 * (q.norm + distance)), size = q.norm + reach;
    double error = 2 * reach * ((q.norm + q.lost) * bank.lost + q.lost) * (1 + 0x1p-20);
    error += 16 * kRound * size * size + columns * 0x1p-95 * (1 + size);
    if (bank.rank == kCosine) {
        const double moved = 2 * kSameDirection * bank.scale;
        error += 2 * moved * size + moved * moved + 0x1p-46 * bank.scale * bank.scale;
    }
    return error;
}

// The float above kth + 2e.
float limit_of(double kth, double error) { return std::nextafter(float(kth + 2 * error), INFINITY); }

// From the scores of the first rows (a random sample): a limit that about k rows of the bank pass, rarely fewer.
void Tile::first_limit(int64_t q, int64_t slot) {
    const int64_t n = std::min({bank.rows, kChunk, kSample});
    const double expected = double(k) * double(n) / double(bank.rows);
    const int64_t r = int64_t(std::ceil(expected + 3 * std::sqrt(expected) + 3));
    query[q].limit = FLT_MAX;
    if (r >= n) return;
    std::copy_n(score.get() + slot * kScoreStride, n, sample.get());
    query[q].limit = bank.lanes->ranked(sample.get(), n, r);
}

// Keep only candidates within 2e of the current k-th; false if there are still too many.
bool Tile::compact(int64_t q) {
    Query &it = query[q];
    const double kth = bank.lanes->ranked(values(q), it.kept, k);
    it.limit = std::min(it.limit, limit_of(kth, error(it, kth)));
    int64_t kept = 0;
    for (int64_t i = 0; i < it.kept; ++i) {
        values(q)[kept] = values(q)[i];
        positions(q)[kept] = positions(q)[i];
        kept += values(q)[i] <= it.limit;
    }
    it.kept = kept;
    return kept <= capacity;
}

// One pass over the bank for the queries `active`, keeping every row whose score is within the query's limit.
void Tile::scan(const std::vector<int64_t> &active, bool sampled) {
    const int64_t n = int64_t(active.size()), width = bank.rank == kL1 ? bank.placed : bank.pairs;
    AlignedVector<int32_t> ints(bank.rank == kL1 ? 0 : (n + 15) / 16 * 16 * width);
    std::vector<float> floats(bank.rank == kL1 ? n * width : 0), factors(n);
    for (int64_t i = 0; i < n; ++i) {
        if (bank.rank == kL1) std::copy_n(point.data() + active[i] * width, width, floats.data() + i * width);
        else std::copy_n(quantized.data() + active[i] * width, width, ints.data() + i * width);
        factors[i] = factor[active[i]];
        query[active[i]].kept = 0;
    }
    for (int64_t first = 0; first < bank.padded; first += kChunk) {
        const int64_t rows = std::min(kChunk, bank.padded - first);
        const int64_t panel = first / kPanel, panels = rows / kPanel;
        if (bank.rank == kL1)
            for (int64_t p = 0; p < panels; ++p)
                bank.lanes->panel_l1(n, floats.data(), bank.real.data() + (panel + p) * width * kPanel, width,
                                     score.get() + p * kPanel, kScoreStride);
        else
            bank.lanes->panel_scores(n, ints.data(), factors.data(), bank.quantized.data() + panel * width * 2 * kPanel,
                                     panels, width, bank.row_scale.data() + first, bank.row_norm2.data() + first,
                                     score.get(), kScoreStride);
        for (int64_t i = 0; i < n; ++i) {
            Query &it = query[active[i]];
            if (!it.open) continue;
            if (sampled && first == 0) first_limit(active[i], i);
            it.kept += bank.lanes->keep_below(score.get() + i * kScoreStride, rows, it.limit, int32_t(first),
                                              values(active[i]) + it.kept, positions(active[i]) + it.kept);
            if (it.kept > capacity) it.open = compact(active[i]);
        }
    }
}

// Scores [n] of rows by the definition, in float64 but in another summation order.
void fine_scores(const Bank &bank, const double *query, const int32_t *rows, int64_t n, double *score) {
    // The rows are scattered over the bank: prefetch all of them before the first is used.
    for (int64_t i = 0; i < std::min<int64_t>(n, 64); ++i)
        for (int64_t c = 0; c < bank.columns; c += 16) __builtin_prefetch(bank.embedding + rows[i] * bank.columns + c);
    const Measure measure = bank.rank == kCosine ? Measure::kDot : bank.rank == kL2 ? Measure::kSquares : Measure::kAbsolutes;
    bank.lanes->pairs(measure, query, bank.embedding, rows, n, bank.columns, bank.inverse_norm.data(), score);
    if (bank.rank != kCosine) return;
    for (int64_t i = 0; i < n; ++i) {
        const double norm2 = bank.norm2[rows[i]], square = score[i] * score[i] / (norm2 > 0 ? norm2 : 1);
        score[i] = score[i] > 0 ? -square : square;
    }
}

// Choose among the candidates of query q. Returns the number of certain rows, written to `rows` in any order; the
// k - certain others are among the `tied` ties, or among all rows if that is -1.
int64_t Tile::settle(int64_t q, const float *vector, int32_t *rows, int32_t *ties, int32_t *tied) {
    const Query &it = query[q];
    const float *s = values(q);
    // Rounded so that the undecided band grows: a row that is certain in float32 is certain.
    const double kth = it.kth, band = 2 * error(it, kth);
    const float below = std::nextafter(float(kth - band), -INFINITY), above = limit_of(kth, band / 2);
    int64_t certain = 0;
    std::vector<int32_t> open;
    for (int64_t i = 0; i < it.kept; ++i) {
        rows[certain] = bank.order[positions(q)[i]];
        certain += s[i] < below;
    }
    for (int64_t i = 0; i < it.kept; ++i)
        if (s[i] >= below && s[i] <= above) open.push_back(bank.order[positions(q)[i]]);
    *tied = 0;
    int64_t missing = k - certain;
    if (int64_t(open.size()) > missing) {
        double norm2 = 0;
        for (int64_t c = 0; c < bank.columns; ++c) {
            wide[c] = vector[c];
            norm2 += wide[c] * wide[c];
        }
        std::vector<double> score(open.size());
        fine_scores(bank, wide.data(), open.data(), int64_t(open.size()), score.data());
        std::vector<std::pair<double, int32_t>> fine(open.size());
        for (size_t i = 0; i < open.size(); ++i) fine[i] = {score[i], open[i]};
        std::nth_element(fine.begin(), fine.begin() + (missing - 1), fine.end());
        const double last = fine[missing - 1].first, gap = 2 * double(bank.columns + 8) * 0x1p-53;
        const double doubt = 2 * (bank.rank == kCosine ? 4 * gap * norm2 : 2 * gap * last);
        open.clear();
        for (const auto &[score, row] : fine) {
            if (score < last - doubt) rows[certain++] = row;
            else if (score <= last + doubt) open.push_back(row);
        }
        missing = k - certain;
    }
    if (int64_t(open.size()) == missing) {
        std::copy(open.begin(), open.end(), rows + certain);
        return k;
    }
    if (int64_t(open.size()) > k + kTies) {
        *tied = -1;
        return 0;
    }
    std::copy(open.begin(), open.end(), ties);
    *tied = int32_t(open.size());
    return certain;
}

void search_tile(const Bank &bank, const float *queries, int64_t count, int64_t k, int32_t *rows, int32_t *certain,
                 int32_t *ties, int32_t *tied) {
    Tile tile(bank, count, k);
    tile.prepare(queries);
    std::vector<int64_t> active;
    for (int64_t q = 0; q < count; ++q)
        if (tile.query[q].open) active.push_back(q);
    std::vector<uint64_t> chosen((bank.rows + 63) / 64);
    for (int pass = 0; pass < 3 && !active.empty(); ++pass) {
        tile.scan(active, pass == 0);
        std::vector<int64_t> again;
        for (const int64_t q : active) {
            Query &it = tile.query[q];
            if (!it.open) continue;
            if (it.kept < k) {
                it.limit = FLT_MAX;
                again.push_back(q);
                continue;
            }
            it.kth = bank.lanes->ranked(tile.values(q), it.kept, k);
            const float needed = limit_of(it.kth, tile.error(it, it.kth));
            if (needed > it.limit) {
                it.limit = needed;
                again.push_back(q);
            }
        }
        active.swap(again);
    }
    for (const int64_t q : active) tile.query[q].open = false;
    for (int64_t q = 0; q < count; ++q) {
        if (!tile.query[q].open) {
            certain[q] = 0, tied[q] = -1;
            continue;
        }
        certain[q] = int32_t(tile.settle(q, queries + q * bank.columns, rows + q * k, ties + q * (k + kTies), tied + q));
        // Sort the rows with a bit set.
        for (int64_t i = 0; i < certain[q]; ++i) chosen[rows[q * k + i] / 64] |= uint64_t(1) << (rows[q * k + i] % 64);
        int32_t *out = rows + q * k;
        for (size_t word = 0; word < chosen.size(); ++word)
            for (; chosen[word]; chosen[word] &= chosen[word] - 1)
                *out++ = int32_t(word * 64) + __builtin_ctzll(chosen[word]);
    }
}

}  // namespace

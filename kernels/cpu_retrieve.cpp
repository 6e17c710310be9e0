// Exact retrieval on a CPU: the k nearest bank rows of each query, their weights, and the weighted mean.
//
// A call works on a tile of at most 64 queries, on the thread that makes it; the caller divides the queries among threads.
//
//   1 filter    Queries and bank rows, centred and scaled, are rounded to int16 with one scale each. Their integer
//               products are exact, so an approximate score s errs by no more than a bound e known beforehand. The bank
//               is stored in a random order: the first rows are a fair sample, from which a limit is read that lets
//               about k rows through. Only those are kept; no N×M matrix is ever held.
//   2 settle    s < s_k - 2e: a neighbour. s > s_k + 2e: none. Between: scored again in float64.
//   3 ties      What float64 in this order of summation cannot tell apart is handed back, for the definition to decide.
//   4 weigh     Distances to the chosen rows in float64, a range of the bank at a time so that it stays in cache.
//   5 sum       Expression is stored in slabs of 16 genes: a slab of the paper's banks fits a core's second-level cache.
//
// The bound and its proof are in cpu.py. The loops themselves are in cpu_lanes.h, once per instruction set.

#include <algorithm>
#include <cmath>
#include <cfloat>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MCLST_X86
#include <immintrin.h>
#endif

namespace {

struct Lanes {
    void (*panel_scores)(int64_t, const int32_t *, const float *, const int16_t *, int64_t, const float *, const float *,
                         float *, int64_t);
    void (*panel_l1)(int64_t, const float *, const float *, int64_t, float *, int64_t);
    int64_t (*keep_below)(const float *, int64_t, float, int32_t, float *, int32_t *);
    float (*ranked)(float *, int64_t, int64_t);
    void (*pairs)(int, const double *, const float *, const int32_t *, int64_t, int64_t, const double *, double *);
    int64_t (*slab_sum[4])(const float *, const int32_t *, const float *, int64_t, int64_t, int64_t, double *);
};

namespace plain {
#include "cpu_lanes.h"
}
#if defined(MCLST_X86)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define MCLST_AVX2
namespace avx2 {
#include "cpu_lanes.h"
}
#undef MCLST_AVX2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define MCLST_AVX512
namespace avx512 {
#include "cpu_lanes.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define MCLST_VNNI
namespace vnni {
#include "cpu_lanes.h"
}
#undef MCLST_VNNI
#undef MCLST_AVX512
#pragma GCC pop_options
#endif

using plain::Measure;

int best_lanes() {
#if defined(MCLST_X86)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 1;
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
#else
    return 0;
#endif
}

const Lanes &lanes_at(int level) {
#if defined(MCLST_X86)
    if (level == 1) return avx2::lanes;
    if (level == 2) return avx512::lanes;
    if (level == 3) return vnni::lanes;
#endif
    return plain::lanes;
}

enum Rank { kCosine, kL2, kL1 };
enum Distance { kByL2, kByL1, kByCosine };
enum Weighting { kSoftmax, kSoftmaxSquared, kInverseSquare, kUniform };

constexpr int64_t kPanel = 32, kChunk = 2048, kTile = 64, kSample = 1024, kTies = 64;
constexpr double kFar = 1 << 20, kNothing = 0x1p-100, kRound = 0x1p-24, kSameDirection = 0x1p-48;

struct Bank {
    const Lanes *lanes;
    const float *embedding;
    int64_t rows, columns, placed, pairs, padded;
    Rank rank;
    bool zero_axis = false;
    std::vector<int32_t> order;
    std::vector<int16_t> whole;  // panels, or
    std::vector<float> real;     // panels under l1
    std::vector<float> row_scale, row_norm2;
    std::vector<double> centre, norm2, inverse_norm;
    double scale = 1, widest = 0, lost = 0;
};

struct Rounded {
    float scale;
    double norm, lost;
};

// `vector` [D] among unit vectors (cosine), or as it stands: out [placed], before centring.
void uncentred(const Bank &bank, const float *vector, double *out) {
    double norm2 = 0;
    for (int64_t c = 0; c < bank.columns; ++c) norm2 += double(vector[c]) * vector[c];
    const double norm = bank.rank == kCosine && norm2 > 0 ? std::sqrt(norm2) : 1;
    for (int64_t c = 0; c < bank.columns; ++c) out[c] = vector[c] / norm;
    if (bank.zero_axis) out[bank.columns] = norm2 > 0 ? 0 : 1;
}

// The float32 point searched for; false where it lies too far out to be searched.
bool place(const Bank &bank, const float *vector, double *room, float *point) {
    uncentred(bank, vector, room);
    bool near = true;
    for (int64_t c = 0; c < bank.placed; ++c) {
        const double moved = (room[c] - bank.centre[c]) * bank.scale;
        near &= std::fabs(moved) <= kFar;
        point[c] = float(moved);
    }
    return near;
}

// `point` as scale·whole. Any sum of products of two such fits an int32: both lengths stay below 46340.
Rounded round_to_int16(const float *point, int64_t columns, int16_t *whole) {
    double norm2 = 0, largest = 0;
    for (int64_t c = 0; c < columns; ++c) {
        norm2 += double(point[c]) * point[c];
        largest = std::max(largest, std::fabs(double(point[c])));
    }
    const double norm = std::sqrt(norm2), length = 46340 - 1 - std::sqrt(double(columns)) / 2;
    if (norm < kNothing) {
        std::fill(whole, whole + columns, int16_t(0));
        return {0, norm, 0};
    }
    const float scale = float(std::max(norm / length, largest / 32766) * (1 + 0x1p-22));
    const double inverse = 1 / double(scale);
    double lost2 = 0;
    for (int64_t c = 0; c < columns; ++c) {
        whole[c] = int16_t(std::lrint(point[c] * inverse));
        const double left = point[c] - double(scale) * whole[c];
        lost2 += left * left;
    }
    return {scale, norm, std::sqrt(lost2)};
}

void find_frame(Bank &bank) {
    std::vector<double> point(bank.placed);
    bank.centre.assign(bank.placed, 0);
    if (bank.rank != kL1) {
        for (int64_t i = 0; i < bank.rows; ++i) {
            uncentred(bank, bank.embedding + i * bank.columns, point.data());
            for (int64_t c = 0; c < bank.placed; ++c) bank.centre[c] += point[c];
        }
        for (double &c : bank.centre) c /= double(bank.rows);
    }
    double size = 0;
    for (int64_t i = 0; i < bank.rows; ++i) {
        uncentred(bank, bank.embedding + i * bank.columns, point.data());
        for (int64_t c = 0; c < bank.placed; ++c) size = std::max(size, std::fabs(point[c] - bank.centre[c]));
    }
    int exponent;
    std::frexp(size, &exponent);
    bank.scale = std::ldexp(1.0, -exponent);
}

void fill_panels(Bank &bank) {
    std::vector<double> room(bank.placed);
    std::vector<float> point(bank.placed);
    std::vector<int16_t> whole(2 * bank.pairs);
    bank.order.resize(bank.rows);
    std::iota(bank.order.begin(), bank.order.end(), 0);
    std::shuffle(bank.order.begin(), bank.order.end(), std::mt19937_64(0));
    if (bank.rank == kL1) bank.real.assign(bank.padded * bank.placed, INFINITY);
    else bank.whole.assign(bank.padded * 2 * bank.pairs, 0);
    bank.row_scale.assign(bank.padded, 0);
    bank.row_norm2.assign(bank.padded, INFINITY);
    for (int64_t i = 0; i < bank.rows; ++i) {
        place(bank, bank.embedding + int64_t(bank.order[i]) * bank.columns, room.data(), point.data());
        const int64_t panel = i / kPanel, lane = i % kPanel;
        if (bank.rank == kL1) {
            for (int64_t c = 0; c < bank.placed; ++c) bank.real[(panel * bank.placed + c) * kPanel + lane] = point[c];
            continue;
        }
        const Rounded row = round_to_int16(point.data(), bank.placed, whole.data());
        for (int64_t c = 0; c < 2 * bank.pairs; ++c)
            bank.whole[((panel * bank.pairs + c / 2) * kPanel + lane) * 2 + c % 2] = whole[c];
        bank.row_scale[i] = row.scale;
        bank.row_norm2[i] = float(row.norm * row.norm);
        bank.widest = std::max(bank.widest, row.norm);
        if (row.norm >= kNothing) bank.lost = std::max(bank.lost, row.lost / row.norm);
    }
}

// ---- one tile of queries -----------------------------------------------------------------------------------------

struct Query {
    bool open = true;  // still to be searched
    double norm = 0, lost = 0;
    float limit = 0;
    double kth = 0;
    int64_t kept = 0;
};

// Room that is written before it is read, and so not cleared.
template <typename T>
std::unique_ptr<T[]> room_for(int64_t n) {
    return std::unique_ptr<T[]>(new T[n]);
}

struct Tile {
    const Bank &bank;
    const int64_t count, k, room;
    std::vector<Query> query;
    std::vector<float> point, factor;
    std::vector<int32_t> whole;
    std::vector<double> wide;
    std::unique_ptr<float[]> score, value, sample;
    std::unique_ptr<int32_t[]> place_;

    Tile(const Bank &bank, int64_t count, int64_t k)
        : bank(bank), count(count), k(k), room(4 * k + 4096), query(count), point(count * bank.placed),
          factor(count), whole(count * bank.pairs), wide(bank.placed), score(room_for<float>(count * kChunk)),
          value(room_for<float>(count * width())), sample(room_for<float>(width())),
          place_(room_for<int32_t>(count * width())) {}

    int64_t width() const { return room + kChunk + 32; }
    float *values(int64_t q) { return value.get() + q * width(); }
    int32_t *places(int64_t q) { return place_.get() + q * width(); }

    void prepare(const float *queries);
    double error(const Query &q, double kth) const;
    bool within_reach(const Query &q) const;
    void scan(const std::vector<int64_t> &asked, bool sampled);
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
        std::memcpy(whole.data() + q * bank.pairs, some.data(), 4 * bank.pairs);
        query[q].norm = it.norm, query[q].lost = it.lost, factor[q] = -2 * it.scale;
        query[q].open = within_reach(query[q]);
    }
}

bool Tile::within_reach(const Query &q) const {
    const double relative = q.norm >= kNothing ? q.lost / q.norm : 0;
    return bank.lost * (1 + relative) + relative < 1. / 25;
}

// e of cpu.py, for the score s - |x|² = `kth`.
double Tile::error(const Query &q, double kth) const {
    const double columns = double(bank.placed);
    if (bank.rank == kL1) {
        const double gamma = (columns + 8) * kRound / (1 - (columns + 8) * kRound);
        return gamma * kth + columns * 0x1p-120 * (1 + kth);
    }
    const double apart = std::sqrt(std::max(0.0, kth + q.norm * q.norm));
    const double reach = std::min(bank.widest, 2 * (q.norm + apart)), size = q.norm + reach;
    double error = 2 * reach * ((q.norm + q.lost) * bank.lost + q.lost) * (1 + 0x1p-20);
    error += 16 * kRound * size * size + columns * 0x1p-95 * (1 + size);
    if (bank.rank == kCosine) {
        const double moved = 2 * kSameDirection * bank.scale;
        error += 2 * moved * size + moved * moved + 0x1p-46 * bank.scale * bank.scale;
    }
    return error;
}

// A limit above kth + 2e, as float.
float limit_of(double kth, double error) { return std::nextafter(float(kth + 2 * error), INFINITY); }

// From the scores of the first rows, a random sample: a limit that about k rows of the bank, seldom fewer, lie below.
void Tile::first_limit(int64_t q, int64_t slot) {
    const int64_t n = std::min({bank.rows, kChunk, kSample});
    const double expected = double(k) * double(n) / double(bank.rows);
    const int64_t r = int64_t(std::ceil(expected + 3 * std::sqrt(expected) + 3));
    query[q].limit = FLT_MAX;
    if (r >= n) return;
    std::copy_n(score.get() + slot * kChunk, n, sample.get());
    query[q].limit = bank.lanes->ranked(sample.get(), n, r);
}

// Keep of the candidates those within 2e of the k-th so far; false where that leaves too many.
bool Tile::compact(int64_t q) {
    Query &it = query[q];
    const double kth = bank.lanes->ranked(values(q), it.kept, k);
    it.limit = std::min(it.limit, limit_of(kth, error(it, kth)));
    int64_t kept = 0;
    for (int64_t i = 0; i < it.kept; ++i) {
        values(q)[kept] = values(q)[i];
        places(q)[kept] = places(q)[i];
        kept += values(q)[i] <= it.limit;
    }
    it.kept = kept;
    return kept <= room;
}

// One pass over the bank for the queries `asked`, keeping every row whose score is within the query's limit.
void Tile::scan(const std::vector<int64_t> &asked, bool sampled) {
    const int64_t n = int64_t(asked.size()), width = bank.rank == kL1 ? bank.placed : bank.pairs;
    std::vector<int32_t> ints(bank.rank == kL1 ? 0 : n * width);
    std::vector<float> floats(bank.rank == kL1 ? n * width : 0), factors(n);
    for (int64_t i = 0; i < n; ++i) {
        if (bank.rank == kL1) std::copy_n(point.data() + asked[i] * width, width, floats.data() + i * width);
        else std::copy_n(whole.data() + asked[i] * width, width, ints.data() + i * width);
        factors[i] = factor[asked[i]];
        query[asked[i]].kept = 0;
    }
    for (int64_t first = 0; first < bank.padded; first += kChunk) {
        const int64_t rows = std::min(kChunk, bank.padded - first);
        for (int64_t panel = first / kPanel; panel < (first + rows) / kPanel; ++panel) {
            float *out = score.get() + panel * kPanel - first;
            if (bank.rank == kL1)
                bank.lanes->panel_l1(n, floats.data(), bank.real.data() + panel * width * kPanel, width, out, kChunk);
            else
                bank.lanes->panel_scores(n, ints.data(), factors.data(), bank.whole.data() + panel * width * 2 * kPanel,
                                         width, bank.row_scale.data() + panel * kPanel,
                                         bank.row_norm2.data() + panel * kPanel, out, kChunk);
        }
        for (int64_t i = 0; i < n; ++i) {
            Query &it = query[asked[i]];
            if (!it.open) continue;
            if (sampled && first == 0) first_limit(asked[i], i);
            it.kept += bank.lanes->keep_below(score.get() + i * kChunk, rows, it.limit, int32_t(first),
                                              values(asked[i]) + it.kept, places(asked[i]) + it.kept);
            if (it.kept > room) it.open = compact(asked[i]);
        }
    }
}

// Scores [n] of rows as the definition has them, in float64 but summed in another order.
void fine_scores(const Bank &bank, const double *query, const int32_t *rows, int64_t n, double *score) {
    // They lie anywhere in the bank: all are asked for before the first is waited for.
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

// Choose among the candidates of query q. Gives the number of rows that are certain, written to `rows` in any order; the
// k - certain others are among the `tied` ties, or among all rows where that is -1.
int64_t Tile::settle(int64_t q, const float *vector, int32_t *rows, int32_t *ties, int32_t *tied) {
    const Query &it = query[q];
    const float *s = values(q);
    const double kth = it.kth, band = 2 * error(it, kth);
    int64_t certain = 0;
    std::vector<int32_t> open;
    for (int64_t i = 0; i < it.kept; ++i) {
        if (s[i] < kth - band) rows[certain++] = bank.order[places(q)[i]];
        else if (s[i] <= kth + band) open.push_back(bank.order[places(q)[i]]);
    }
    *tied = 0;
    int64_t wanted = k - certain;
    if (int64_t(open.size()) > wanted) {
        double norm2 = 0;
        for (int64_t c = 0; c < bank.columns; ++c) {
            wide[c] = vector[c];
            norm2 += wide[c] * wide[c];
        }
        std::vector<double> score(open.size());
        fine_scores(bank, wide.data(), open.data(), int64_t(open.size()), score.data());
        std::vector<std::pair<double, int32_t>> fine(open.size());
        for (size_t i = 0; i < open.size(); ++i) fine[i] = {score[i], open[i]};
        std::nth_element(fine.begin(), fine.begin() + (wanted - 1), fine.end());
        const double last = fine[wanted - 1].first, gap = 2 * double(bank.columns + 8) * 0x1p-53;
        const double doubt = 2 * (bank.rank == kCosine ? 4 * gap * norm2 : 2 * gap * last);
        open.clear();
        for (const auto &[score, row] : fine) {
            if (score < last - doubt) rows[certain++] = row;
            else if (score <= last + doubt) open.push_back(row);
        }
        wanted = k - certain;
    }
    if (int64_t(open.size()) == wanted) {
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
    std::vector<int64_t> asked;
    for (int64_t q = 0; q < count; ++q)
        if (tile.query[q].open) asked.push_back(q);
    std::vector<uint64_t> chosen((bank.rows + 63) / 64);
    for (int pass = 0; pass < 3 && !asked.empty(); ++pass) {
        tile.scan(asked, pass == 0);
        std::vector<int64_t> again;
        for (const int64_t q : asked) {
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
        asked.swap(again);
    }
    for (const int64_t q : asked) tile.query[q].open = false;
    for (int64_t q = 0; q < count; ++q) {
        if (!tile.query[q].open) {
            certain[q] = 0, tied[q] = -1;
            continue;
        }
        certain[q] = int32_t(tile.settle(q, queries + q * bank.columns, rows + q * k, ties + q * (k + kTies), tied + q));
        // In order of rows, by way of one bit a row.
        for (int64_t i = 0; i < certain[q]; ++i) chosen[rows[q * k + i] / 64] |= uint64_t(1) << (rows[q * k + i] % 64);
        int32_t *out = rows + q * k;
        for (size_t word = 0; word < chosen.size(); ++word)
            for (; chosen[word]; chosen[word] &= chosen[word] - 1)
                *out++ = int32_t(word * 64) + __builtin_ctzll(chosen[word]);
    }
}

// ---- distances and weights ---------------------------------------------------------------------------------------

// Distances [n] of `query`, for cosine a unit vector, to rows of the bank.
void distances(const Bank &bank, Distance distance, const double *query, double query_norm, const int32_t *rows, int64_t n,
               double *out) {
    const Measure measure = distance == kByL2   ? Measure::kSquares
                            : distance == kByL1 ? Measure::kAbsolutes
                                                : Measure::kUnitSquares;
    bank.lanes->pairs(measure, query, bank.embedding, rows, n, bank.columns, bank.inverse_norm.data(), out);
    for (int64_t j = 0; j < n; ++j) {
        if (distance == kByL2) out[j] = std::sqrt(out[j]);
        if (distance != kByCosine) continue;
        if (query_norm == 0 || bank.inverse_norm[rows[j]] == 0) out[j] = 1;
        else out[j] = out[j] > kSameDirection * kSameDirection ? out[j] / 2 : 0;
    }
}

// Distances [k] into weights that sum to 1, as reference.weights; the nearest distance is found already.
void weigh(double *d, int64_t k, double nearest, Weighting weighting, double temperature) {
    double total = 0;
    for (int64_t j = 0; j < k; ++j) {
        if (weighting == kUniform) {
            d[j] = 1;
        } else if (weighting == kInverseSquare) {
            const double ratio = nearest > 0 ? nearest / d[j] : d[j] == 0;
            d[j] = ratio * ratio;
        } else {
            double beyond = d[j] - nearest;
            if (weighting == kSoftmaxSquared) beyond *= d[j] + nearest;
            d[j] = std::exp(-beyond / temperature);
        }
        total += d[j];
    }
    for (int64_t j = 0; j < k; ++j) d[j] /= total;
}

void weigh_tile(const Bank &bank, const float *queries, int64_t count, int64_t k, const int32_t *rows, Distance distance,
                Weighting weighting, double temperature, float *weight, float *nearest, float *effective_k) {
    std::vector<double> wide(count * bank.columns), norm(count, 0), d(count * k);
    std::vector<int64_t> at(count, 0);
    for (int64_t q = 0; q < count; ++q) {
        double *to = wide.data() + q * bank.columns, norm2 = 0;
        for (int64_t c = 0; c < bank.columns; ++c) {
            to[c] = queries[q * bank.columns + c];
            norm2 += to[c] * to[c];
        }
        norm[q] = std::sqrt(norm2);
        if (distance == kByCosine && norm[q] > 0)
            for (int64_t c = 0; c < bank.columns; ++c) to[c] /= norm[q];
    }
    const int64_t step = std::max<int64_t>(1, (512 << 10) / (4 * bank.columns));
    for (int64_t end = step; end - step < bank.rows; end += step)
        for (int64_t q = 0; q < count; ++q) {
            const int64_t from = q * k + at[q];
            while (at[q] < k && rows[q * k + at[q]] < end) ++at[q];
            distances(bank, distance, wide.data() + q * bank.columns, norm[q], rows + from, q * k + at[q] - from,
                      d.data() + from);
        }
    for (int64_t q = 0; q < count; ++q) {
        double *of = d.data() + q * k, squares = 0;
        const double least = *std::min_element(of, of + k);
        weigh(of, k, least, weighting, temperature);
        for (int64_t j = 0; j < k; ++j) {
            weight[q * k + j] = float(of[j]);
            squares += of[j] * of[j];
        }
        nearest[q] = float(least);
        effective_k[q] = float(1 / squares);
    }
}

}  // namespace

// ---- what Python calls; 0 or a pointer where all went well, else out of memory ------------------------------------

extern "C" {

int mclst_best_lanes() { return best_lanes(); }

void *mclst_bank(const float *embedding, int64_t rows, int64_t columns, int rank, int lanes) try {
    auto bank = std::make_unique<Bank>();
    bank->lanes = &lanes_at(lanes), bank->embedding = embedding, bank->rows = rows, bank->columns = columns;
    bank->rank = Rank(rank);
    bank->norm2.resize(rows), bank->inverse_norm.resize(rows);
    for (int64_t i = 0; i < rows; ++i) {
        double norm2 = 0;
        for (int64_t c = 0; c < columns; ++c) norm2 += double(embedding[i * columns + c]) * embedding[i * columns + c];
        bank->norm2[i] = norm2;
        bank->inverse_norm[i] = norm2 > 0 ? 1 / std::sqrt(norm2) : 0;
        bank->zero_axis |= rank == kCosine && norm2 == 0;
    }
    bank->placed = columns + bank->zero_axis, bank->pairs = (bank->placed + 1) / 2;
    bank->padded = (rows + kPanel - 1) / kPanel * kPanel;
    find_frame(*bank);
    fill_panels(*bank);
    return bank.release();
} catch (const std::bad_alloc &) {
    return nullptr;
}

void mclst_free(void *bank) { delete static_cast<Bank *>(bank); }

// rows [count][k]: per query the `certain` chosen rows, ascending. Where that is fewer than k, the others are among the
// `tied` rows in ties [count][k + kTies], or, where tied is -1, the query has to be scored against every row.
int mclst_search(const void *bank, const float *queries, int64_t count, int64_t k, int32_t *rows, int32_t *certain,
                 int32_t *ties, int32_t *tied) try {
    const Bank &in = *static_cast<const Bank *>(bank);
    for (int64_t q = 0; q < count; q += kTile)
        search_tile(in, queries + q * in.columns, std::min(kTile, count - q), k, rows + q * k, certain + q,
                    ties + q * (k + kTies), tied + q);
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

int mclst_weigh(const void *bank, const float *queries, int64_t count, int64_t k, const int32_t *rows, int distance,
                int weighting, double temperature, float *weight, float *nearest, float *effective_k) try {
    weigh_tile(*static_cast<const Bank *>(bank), queries, count, k, rows, Distance(distance), Weighting(weighting),
               temperature, weight, nearest, effective_k);
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

// out [count][genes] at the columns of one slab, which starts at gene `first` and holds `strips` times 16 of each row.
int mclst_slab_sums(int lanes, const float *slab, int strips, int64_t bank_rows, const int32_t *rows, const float *weight,
                    int64_t count, int64_t k, float *out, int64_t genes, int64_t first, int64_t step) try {
    const auto sum = lanes_at(lanes).slab_sum[strips - 1];
    const int64_t width = 16 * strips, some = std::min(width, genes - first);
    std::vector<double> total(count * width, 0);
    std::vector<int64_t> at(count, 0);
    for (int64_t end = step; end - step < bank_rows; end += step)
        for (int64_t q = 0; q < count; ++q)
            at[q] = sum(slab, rows + q * k, weight + q * k, at[q], k, end, total.data() + q * width);
    for (int64_t q = 0; q < count; ++q)
        for (int64_t g = 0; g < some; ++g) out[q * genes + first + g] = float(total[q * width + g]);
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}
}

// The inner loops of the cpu provider, compiled once for each instruction set.
//
// No include guard: bank.h includes this file several times, each time in its own namespace and with the compiler options
// of one set, selected by MCLST_AMX, MCLST_VNNI, MCLST_AVX512 or MCLST_AVX2. No standard library template may be
// instantiated here: the linker would keep one copy for all sets. Vectors are the compiler's vector extensions.
//
// Layouts: a panel is 32 bank rows side by side. Panels of integers hold pairs of columns, [columns/2][32][2] int16;
// panels of floats hold [columns][32]. A slab is 16·S genes of all bank rows, [rows][16·S] float.
// For AMX the int16 are split into bytes, v = 256·high + low with low unsigned: a panel then holds
// [columns/64][half of 16 rows][high, low][16 fours of columns][16 rows][4], a query [columns/64][high, low][64].

// Floats per vector register. fw, iw: such a vector of floats, of ints. fh, dh: half of it, as floats, as doubles.
#if defined(MCLST_AVX512)
constexpr int kWide = 16;
#elif defined(MCLST_AVX2)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
constexpr int kHalf = kWide / 2;
typedef float fw __attribute__((vector_size(4 * kWide), aligned(4)));
typedef float fh __attribute__((vector_size(4 * kHalf), aligned(4)));
typedef int32_t iw __attribute__((vector_size(4 * kWide), aligned(4)));
typedef double dh __attribute__((vector_size(8 * kHalf), aligned(8)));

static inline fw load(const float *from) { return *reinterpret_cast<const fw *>(from); }
static inline dh load(const double *from) { return *reinterpret_cast<const dh *>(from); }
static inline void store(float *to, fw value) { *reinterpret_cast<fw *>(to) = value; }

#if defined(MCLST_AVX512)
static inline dh wide(const float *from) { return (dh)_mm512_maskz_cvtps_pd(255, _mm256_loadu_ps(from)); }
static inline dh low(fw value) { return (dh)_mm512_maskz_cvtps_pd(255, _mm512_castps512_ps256((__m512)value)); }
static inline dh high(fw value) { return (dh)_mm512_maskz_cvtps_pd(255, _mm512_extractf32x8_ps((__m512)value, 1)); }
#elif defined(MCLST_AVX2)
static inline dh wide(const float *from) { return (dh)_mm256_cvtps_pd(_mm_loadu_ps(from)); }
static inline dh low(fw value) { return (dh)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)value)); }
static inline dh high(fw value) { return (dh)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)value, 1)); }
#else
static inline dh wide(const float *from) { return dh{from[0], from[1]}; }
static inline dh low(fw value) { return dh{value[0], value[1]}; }
static inline dh high(fw value) { return dh{value[2], value[3]}; }
#endif

static inline double sum_of(dh value) {
    double lane[kHalf];
    *reinterpret_cast<dh *>(lane) = value;
    for (int width = kHalf / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}

// ---- scores of a panel -------------------------------------------------------------------------------------------

#if !defined(MCLST_AMX)
// Exact integer products of R queries, each `pairs` int32 of two columns, with one panel: out [R][32].
template <int R>
static void products(const int32_t *queries, int64_t stride, const int16_t *panel, int64_t pairs, int32_t *out) {
#if defined(MCLST_AVX512)
    __m512i sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    for (int64_t p = 0; p < pairs; ++p, panel += 64) {
        const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 32);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const __m512i query = _mm512_set1_epi32(queries[r * stride + p]);
#if defined(MCLST_VNNI)
            sum[r][0] = _mm512_dpwssd_epi32(sum[r][0], left, query);
            sum[r][1] = _mm512_dpwssd_epi32(sum[r][1], right, query);
#else
            sum[r][0] = _mm512_add_epi32(sum[r][0], _mm512_madd_epi16(left, query));
            sum[r][1] = _mm512_add_epi32(sum[r][1], _mm512_madd_epi16(right, query));
#endif
        }
    }
    for (int r = 0; r < R; ++r) {
        _mm512_storeu_si512(out + 32 * r, sum[r][0]);
        _mm512_storeu_si512(out + 32 * r + 16, sum[r][1]);
    }
#elif defined(MCLST_AVX2)
    __m256i sum[R][4];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < 4; ++v) sum[r][v] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pairs; ++p, panel += 64) {
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) {
            const __m256i query = _mm256_set1_epi32(queries[r * stride + p]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                const __m256i rows = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(panel + 16 * v));
                sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(rows, query));
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < 4; ++v)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + 32 * r + 8 * v), sum[r][v]);
#else
    for (int r = 0; r < R; ++r) {
        int32_t sum[32] = {};
        const int16_t *rows = panel;
        for (int64_t p = 0; p < pairs; ++p, rows += 64) {
            int16_t query[2];
            std::memcpy(query, queries + r * stride + p, sizeof query);
            for (int j = 0; j < 32; ++j) sum[j] += int32_t(rows[2 * j]) * query[0] + int32_t(rows[2 * j + 1]) * query[1];
        }
        std::memcpy(out + 32 * r, sum, sizeof sum);
    }
#endif
}

#if defined(MCLST_AVX512)
constexpr int kQueryBlock = 12;
#elif defined(MCLST_AVX2)
constexpr int kQueryBlock = 3;
#else
constexpr int kQueryBlock = 1;
#endif

template <int R>
static void some_products(int count, const int32_t *queries, int64_t stride, const int16_t *panel, int64_t pairs,
                          int32_t *out) {
    if constexpr (R > 1) {
        if (count < R) return some_products<R - 1>(count, queries, stride, panel, pairs, out);
    }
    products<R>(queries, stride, panel, pairs, out);
}
#endif

// s = |p|² - 2 x·p of `count` queries and `panels` consecutive panels: score [count][32·panels], with a stride of `stride`
// floats. Queries hold `pairs` int32 each; with AMX their number is padded to a multiple of 16.
#if defined(MCLST_AMX)
struct __attribute__((packed)) TileShapes {
    uint8_t palette = 1, start = 0, none[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Exact integer products of 16 queries and 16 rows, out [4][16][16]: high·high, high·low, low·high, low·low.
static inline void byte_products(const int8_t *query, int64_t stride, const int8_t *rows, int64_t blocks, int32_t *out) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t b = 0; b < blocks; ++b, query += 128, rows += 4096) {
        _tile_loadd(4, query, stride);
        _tile_loadd(5, query + 64, stride);
        _tile_loadd(6, rows, 64);
        _tile_loadd(7, rows + 1024, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbuud(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 256, 64);
    _tile_stored(2, out + 512, 64);
    _tile_stored(3, out + 768, 64);
}

static void panel_scores(int64_t count, const int32_t *queries, const float *factor, const int16_t *panel, int64_t panels,
                         int64_t pairs, const float *row_scale, const float *row_norm2, float *score, int64_t stride) {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    alignas(64) int32_t part[4 * 256];
    for (int64_t first = 0; first < 32 * panels; first += 16) {
        const int8_t *rows = reinterpret_cast<const int8_t *>(panel + first / 32 * 64 * pairs) + first % 32 * 128;
        const __m512 scale = _mm512_loadu_ps(row_scale + first), norm2 = _mm512_loadu_ps(row_norm2 + first);
        for (int64_t start = 0; start < count; start += 16) {
            byte_products(reinterpret_cast<const int8_t *>(queries + start * pairs), 4 * pairs, rows, pairs / 32, part);
            for (int64_t q = start; q < count && q < start + 16; ++q) {
                const int32_t *of = part + 16 * (q - start);
                const __m512i middle = _mm512_add_epi32(_mm512_load_si512(of + 256), _mm512_load_si512(of + 512));
                const __m512i outer =
                    _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(of), 16), _mm512_load_si512(of + 768));
                const __m512i dot = _mm512_add_epi32(outer, _mm512_slli_epi32(middle, 8));
                const __m512 scaled = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot));
                store(score + q * stride + first, (fw)norm2 + factor[q] * (fw)scaled);
            }
        }
    }
    _tile_release();
}
#else
static void panel_scores(int64_t count, const int32_t *queries, const float *factor, const int16_t *panel, int64_t panels,
                         int64_t pairs, const float *row_scale, const float *row_norm2, float *score, int64_t stride) {
    int32_t dot[kQueryBlock * 32];
    for (int64_t first = 0; first < 32 * panels; first += 32, panel += 64 * pairs)
        for (int64_t start = 0; start < count; start += kQueryBlock) {
            const int some = count - start < kQueryBlock ? int(count - start) : kQueryBlock;
            some_products<kQueryBlock>(some, queries + start * pairs, pairs, panel, pairs, dot);
            for (int r = 0; r < some; ++r)
                for (int j = 0; j < 32; j += kWide) {
                    const fw product = __builtin_convertvector(*reinterpret_cast<const iw *>(dot + 32 * r + j), fw);
                    store(score + (start + r) * stride + first + j,
                          load(row_norm2 + first + j) + factor[start + r] * (load(row_scale + first + j) * product));
                }
        }
}
#endif

// Σ|x - p| of `count` queries [count][columns] and one panel of floats.
static void panel_l1(int64_t count, const float *queries, const float *panel, int64_t columns, float *score,
                     int64_t stride) {
    const iw magnitude = iw{} + 0x7fffffff;
    for (int64_t q = 0; q < count; ++q) {
        fw sum[32 / kWide]{};
        for (int64_t c = 0; c < columns; ++c)
#pragma GCC unroll 8
            for (int v = 0; v < 32 / kWide; ++v)
                sum[v] += (fw)((iw)(load(panel + 32 * c + kWide * v) - queries[q * columns + c]) & magnitude);
        for (int v = 0; v < 32 / kWide; ++v) store(score + q * stride + kWide * v, sum[v]);
    }
}

// ---- selection ---------------------------------------------------------------------------------------------------

// Append value and index first + i of the `scores` [n] that are <= limit. n is a multiple of 16; needs room for n + 16.
static int64_t keep_below(const float *scores, int64_t n, float limit, int32_t first, float *value, int32_t *position) {
    int64_t kept = 0;
#if defined(MCLST_AVX512)
    const __m512 most = _mm512_set1_ps(limit);
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first),
                                  _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int64_t i = 0; i < n; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
        const __m512 some = _mm512_loadu_ps(scores + i);
        const __mmask16 below = _mm512_cmp_ps_mask(some, most, _CMP_LE_OQ);
        _mm512_storeu_ps(value + kept, _mm512_maskz_compress_ps(below, some));
        _mm512_storeu_si512(position + kept, _mm512_maskz_compress_epi32(below, at));
        kept += __builtin_popcount(below);
    }
#else
    for (int64_t i = 0; i < n; i += 16) {
        int any = 0;
        for (int lane = 0; lane < 16; ++lane) any |= scores[i + lane] <= limit;
        if (!any) continue;
        for (int64_t j = i; j < i + 16; ++j) {
            value[kept] = scores[j];
            position[kept] = first + int32_t(j);
            kept += scores[j] <= limit;
        }
    }
#endif
    return kept;
}

static int64_t count_below(const float *values, int64_t n, float limit) {
    iw count{};
    for (int64_t i = 0; i < n; i += kWide) count -= load(values + i) <= limit;
    int64_t total = 0;
    for (int lane = 0; lane < kWide; ++lane) total += count[lane];
    return total;
}

static inline int32_t key_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

static inline float value_of(int32_t key) {
    key ^= (key >> 31) & 0x7fffffff;
    float value;
    std::memcpy(&value, &key, sizeof value);
    return value;
}

// The r-th smallest (1 … n) of `values` [n], by bisecting the float bit patterns. Overwrites values [n … n+15].
static float ranked(float *values, int64_t n, int64_t r) {
    const float infinity = __builtin_inff();
    for (int64_t i = n; i < n + 15; ++i) values[i] = infinity;
    fw low_lanes = fw{} + values[0], high_lanes = low_lanes;
    for (int64_t i = 0; i < n; i += kWide) {
        const fw some = load(values + i), finite = some < infinity ? some : low_lanes;
        low_lanes = some < low_lanes ? some : low_lanes;
        high_lanes = finite > high_lanes ? finite : high_lanes;
    }
    float least = low_lanes[0], most = high_lanes[0];
    for (int lane = 1; lane < kWide; ++lane) {
        least = low_lanes[lane] < least ? low_lanes[lane] : least;
        most = high_lanes[lane] > most ? high_lanes[lane] : most;
    }
    int32_t from = key_of(least), to = key_of(most);
    while (from < to) {
        const int32_t middle = int32_t((int64_t(from) + to) >> 1);
        const float limit = value_of(middle);
        const int64_t below = count_below(values, n, limit);
        if (below == r) {
            fw last = fw{} + least;
            for (int64_t i = 0; i < n; i += kWide) {
                const fw some = load(values + i), kept = some <= limit ? some : last;
                last = kept > last ? kept : last;
            }
            float answer = last[0];
            for (int lane = 1; lane < kWide; ++lane) answer = last[lane] > answer ? last[lane] : answer;
            return answer;
        }
        if (below >= r) to = middle;
        else from = middle + 1;
    }
    return value_of(from);
}

// ---- pairs in float64 --------------------------------------------------------------------------------------------

enum Measure { kSquares, kAbsolutes, kDot, kUnitSquares };

// Σ over D columns of (q-b)², |q-b|, q·b or (q - by·b)² for R rows at once, with a float64 query.
template <Measure measure, int R>
static inline void pair_sums(const double *query, const float *const *row, int64_t columns, const double *by, double *out) {
    dh sum[R][2]{};
    int64_t c = 0;
    const auto add = [by](dh &to, dh q, dh b, [[maybe_unused]] int r) {
        if constexpr (measure == kDot) {
            to += q * b;
        } else {
            const dh difference = measure == kUnitSquares ? q - by[r] * b : q - b;
            if constexpr (measure == kAbsolutes) to += difference < 0 ? -difference : difference;
            else to += difference * difference;
        }
    };
    for (; c + 2 * kHalf <= columns; c += 2 * kHalf)
#pragma GCC unroll 2
        for (int part = 0; part < 2; ++part) {
            const dh q = load(query + c + kHalf * part);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) add(sum[r][part], q, wide(row[r] + c + kHalf * part), r);
        }
    for (int r = 0; r < R; ++r) {
        out[r] = sum_of(sum[r][0] + sum[r][1]);
        for (int64_t d = c; d < columns; ++d) {
            const double b = row[r][d], difference = measure == kUnitSquares ? query[d] - by[r] * b : query[d] - b;
            if constexpr (measure == kDot) out[r] += query[d] * b;
            else out[r] += measure != kAbsolutes ? difference * difference : difference < 0 ? -difference : difference;
        }
    }
}

template <Measure measure>
static void pairs_of(const double *query, const float *bank, const int32_t *rows, int64_t n, int64_t columns,
                     const double *by, double *out) {
    constexpr int R = 4;
    for (int64_t j = 0; j < n; j += R) {
        const float *row[R];
        double scale[R], sums[R];
        for (int r = 0; r < R; ++r) {
            const int32_t at = rows[j + r < n ? j + r : n - 1];
            row[r] = bank + at * columns;
            scale[r] = by[at];
        }
        pair_sums<measure, R>(query, row, columns, scale, sums);
        for (int r = 0; r < R && j + r < n; ++r) out[j + r] = sums[r];
    }
}

// One of these sums for n rows of the bank: out [n]. A pair's sum has the same bits in every batch.
static void pairs(int measure, const double *query, const float *bank, const int32_t *rows, int64_t n, int64_t columns,
                  const double *by, double *out) {
    switch (measure) {
        case kSquares: return pairs_of<kSquares>(query, bank, rows, n, columns, by, out);
        case kAbsolutes: return pairs_of<kAbsolutes>(query, bank, rows, n, columns, by, out);
        case kDot: return pairs_of<kDot>(query, bank, rows, n, columns, by, out);
        default: return pairs_of<kUnitSquares>(query, bank, rows, n, columns, by, out);
    }
}

// ---- the weighted mean -------------------------------------------------------------------------------------------

// a += Σ weight·slab over n rows of V vectors each.
template <int V>
static inline void add_rows(fw (&a)[V], const float *slab, const int32_t *rows, const float *weight, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        const float *row = slab + kWide * V * int64_t(rows[j]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) a[v] += weight[j] * load(row + kWide * v);
    }
}

// total [16·S] += Σ weight·slab over the neighbors from `j` on below row `end`; returns the next j. At most eight rows are
// added in float32 before the sum goes to float64, so the error is below 10·2⁻²⁴ Σ|weight·slab| for any k.
template <int S>
static int64_t slab_sum(const float *slab, const int32_t *rows, const float *weight, int64_t j, int64_t k, int64_t end,
                        double *total) {
    constexpr int V = 16 * S / kWide;
    dh sum[2 * V];
#pragma GCC unroll 32
    for (int half = 0; half < 2 * V; ++half) sum[half] = load(total + kHalf * half);
    const auto take = [&sum](const fw(&part)[V]) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
            sum[2 * v] += low(part[v]);
            sum[2 * v + 1] += high(part[v]);
        }
    };
    for (; j + 8 <= k && rows[j + 7] < end; j += 8) {
        fw part[V]{};
        add_rows<V>(part, slab, rows + j, weight + j, 8);
        take(part);
    }
    if (j < k && rows[j] < end) {
        fw part[V]{};
        for (; j < k && rows[j] < end; ++j) add_rows<V>(part, slab, rows + j, weight + j, 1);
        take(part);
    }
#pragma GCC unroll 32
    for (int half = 0; half < 2 * V; ++half) *reinterpret_cast<dh *>(total + kHalf * half) = sum[half];
    return j;
}

#if defined(MCLST_AMX)
constexpr bool kBytes = true;
#else
constexpr bool kBytes = false;
#endif

static const Lanes lanes = {kBytes, panel_scores, panel_l1, keep_below, ranked, pairs,
                            {slab_sum<1>, slab_sum<2>, slab_sum<3>, slab_sum<4>}};

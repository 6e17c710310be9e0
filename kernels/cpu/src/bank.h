// The bank of the cpu provider: quantized points, laid out in panels for the loops of lanes.h.
#pragma once

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
#if defined(__linux__) && __GNUC__ >= 11
#define MCLST_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace {

struct Lanes {
    bool bytes;  // integers are stored as bytes, 64 columns at a time
    void (*panel_scores)(int64_t, const int32_t *, const float *, const int16_t *, int64_t, int64_t, const float *,
                         const float *, float *, int64_t);
    void (*panel_l1)(int64_t, const float *, const float *, int64_t, float *, int64_t);
    int64_t (*keep_below)(const float *, int64_t, float, int32_t, float *, int32_t *);
    float (*ranked)(float *, int64_t, int64_t);
    void (*pairs)(int, const double *, const float *, const int32_t *, int64_t, int64_t, const double *, double *);
    int64_t (*slab_sum[4])(const float *, const int32_t *, const float *, int64_t, int64_t, int64_t, double *);
};

namespace plain {
#include "lanes.h"
}
#if defined(MCLST_X86)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define MCLST_AVX2
namespace avx2 {
#include "lanes.h"
}
#undef MCLST_AVX2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define MCLST_AVX512
namespace avx512 {
#include "lanes.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define MCLST_VNNI
namespace vnni {
#include "lanes.h"
}
#undef MCLST_VNNI
#pragma GCC pop_options
#if defined(MCLST_TILES)
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-int8")
#define MCLST_AMX
namespace amx {
#include "lanes.h"
}
#undef MCLST_AMX
#pragma GCC pop_options
#endif
#undef MCLST_AVX512
#endif

using plain::Measure;

// Whether the CPU has AMX and the kernel grants it to this process.
bool may_use_tiles() {
#if defined(MCLST_TILES)
    constexpr int kAskPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
           syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
#else
    return false;
#endif
}

int best_lanes() {
#if defined(MCLST_X86)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 1;
    if (!__builtin_cpu_supports("avx512vnni")) return 2;
    static const int best = may_use_tiles() ? 4 : 3;
    return best;
#else
    return 0;
#endif
}

const Lanes &lanes_at(int level) {
#if defined(MCLST_X86)
    if (level == 1) return avx2::lanes;
    if (level == 2) return avx512::lanes;
    if (level == 3) return vnni::lanes;
#if defined(MCLST_TILES)
    if (level == 4) return amx::lanes;
#endif
#endif
    return plain::lanes;
}

enum Rank { kCosine, kL2, kL1 };
enum Distance { kByL2, kByL1, kByCosine };
enum Weighting { kSoftmax, kSoftmaxSquared, kInverseSquare, kUniform };

constexpr int64_t kPanel = 32, kChunk = 2048, kTile = 128, kSample = 1024, kTies = 64, kScoreStride = kChunk + 16;
constexpr double kFar = 1 << 20, kTiny = 0x1p-100, kRound = 0x1p-24, kSameDirection = 0x1p-48;

// Aligned to cache lines: a tile row across two lines takes twice as long to load.
template <typename T>
struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <typename U>
    Aligned(const Aligned<U> &) {}
    T *allocate(size_t n) { return static_cast<T *>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T *at, size_t) { ::operator delete(at, std::align_val_t(64)); }
    bool operator==(const Aligned &) const { return true; }
    bool operator!=(const Aligned &) const { return false; }
};
template <typename T>
using AlignedVector = std::vector<T, Aligned<T>>;

struct Bank {
    const Lanes *lanes;
    const float *embedding;
    int64_t rows, columns, placed, pairs, padded;
    Rank rank;
    bool zero_axis = false;
    std::vector<int32_t> order;
    AlignedVector<int16_t> quantized;  // panels, for cosine and l2
    AlignedVector<float> real;         // panels, for l1
    AlignedVector<float> row_scale, row_norm2;
    std::vector<double> center, norm2, inverse_norm;
    double scale = 1, widest = 0, lost = 0;
};

struct Rounded {
    float scale;
    double norm, lost;
};

// `vector` [D], normalized for cosine, before centering: out [placed].
void uncentered(const Bank &bank, const float *vector, double *out) {
    double norm2 = 0;
    for (int64_t c = 0; c < bank.columns; ++c) norm2 += double(vector[c]) * vector[c];
    const double norm = bank.rank == kCosine && norm2 > 0 ? std::sqrt(norm2) : 1;
    for (int64_t c = 0; c < bank.columns; ++c) out[c] = vector[c] / norm;
    if (bank.zero_axis) out[bank.columns] = norm2 > 0 ? 0 : 1;
}

// The float32 point of a vector; false if it is too far out to be searched.
bool place(const Bank &bank, const float *vector, double *buffer, float *point) {
    uncentered(bank, vector, buffer);
    bool near = true;
    for (int64_t c = 0; c < bank.placed; ++c) {
        const double moved = (buffer[c] - bank.center[c]) * bank.scale;
        near &= std::fabs(moved) <= kFar;
        point[c] = float(moved);
    }
    return near;
}

// Quantize `point` to scale·quantized. Sums of products of two of these fit int32, as their norms are below 46340.
Rounded round_to_int16(const float *point, int64_t columns, int16_t *quantized) {
    double norm2 = 0, largest = 0;
    for (int64_t c = 0; c < columns; ++c) {
        norm2 += double(point[c]) * point[c];
        largest = std::max(largest, std::fabs(double(point[c])));
    }
    const double norm = std::sqrt(norm2), length = 46340 - 1 - std::sqrt(double(columns)) / 2;
    if (norm < kTiny) {
        std::fill(quantized, quantized + columns, int16_t(0));
        return {0, norm, 0};
    }
    const float scale = float(std::max(norm / length, largest / 32766) * (1 + 0x1p-22));
    const double inverse = 1 / double(scale);
    double lost2 = 0;
    for (int64_t c = 0; c < columns; ++c) {
        quantized[c] = int16_t(std::lrint(point[c] * inverse));
        const double left = point[c] - double(scale) * quantized[c];
        lost2 += left * left;
    }
    return {scale, norm, std::sqrt(lost2)};
}

void find_frame(Bank &bank) {
    std::vector<double> point(bank.placed);
    bank.center.assign(bank.placed, 0);
    if (bank.rank != kL1) {
        for (int64_t i = 0; i < bank.rows; ++i) {
            uncentered(bank, bank.embedding + i * bank.columns, point.data());
            for (int64_t c = 0; c < bank.placed; ++c) bank.center[c] += point[c];
        }
        for (double &c : bank.center) c /= double(bank.rows);
    }
    double size = 0;
    for (int64_t i = 0; i < bank.rows; ++i) {
        uncentered(bank, bank.embedding + i * bank.columns, point.data());
        for (int64_t c = 0; c < bank.placed; ++c) size = std::max(size, std::fabs(point[c] - bank.center[c]));
    }
    int exponent;
    std::frexp(size, &exponent);
    bank.scale = std::ldexp(1.0, -exponent);
}

int8_t high_byte(int16_t quantized) { return int8_t(quantized >> 8); }
int8_t low_byte(int16_t quantized) { return int8_t(quantized & 255); }

// Write a row of integers to its panel; lanes.h documents the layouts.
void put_row(Bank &bank, int64_t panel, int64_t lane, const int16_t *quantized) {
    int16_t *to = bank.quantized.data() + panel * bank.pairs * 2 * kPanel;
    for (int64_t c = 0; c < 2 * bank.pairs; ++c) {
        if (!bank.lanes->bytes) {
            to[(c / 2 * kPanel + lane) * 2 + c % 2] = quantized[c];
            continue;
        }
        int8_t *byte = reinterpret_cast<int8_t *>(to) + (c / 64 * 2 + lane / 16) * 2048;
        byte += c % 64 / 4 * 64 + lane % 16 * 4 + c % 4;
        byte[0] = high_byte(quantized[c]), byte[1024] = low_byte(quantized[c]);
    }
}

// Write a query's integers in the layout of the loops, `pairs` int32.
void put_query(const Bank &bank, const int16_t *quantized, int32_t *to) {
    if (!bank.lanes->bytes) {
        std::memcpy(to, quantized, 4 * bank.pairs);
        return;
    }
    int8_t *byte = reinterpret_cast<int8_t *>(to);
    for (int64_t c = 0; c < 2 * bank.pairs; ++c) {
        byte[c / 64 * 128 + c % 64] = high_byte(quantized[c]);
        byte[c / 64 * 128 + 64 + c % 64] = low_byte(quantized[c]);
    }
}

void fill_panels(Bank &bank) {
    std::vector<double> buffer(bank.placed);
    std::vector<float> point(bank.placed);
    std::vector<int16_t> quantized(2 * bank.pairs);
    bank.order.resize(bank.rows);
    std::iota(bank.order.begin(), bank.order.end(), 0);
    std::shuffle(bank.order.begin(), bank.order.end(), std::mt19937_64(0));
    if (bank.rank == kL1) bank.real.assign(bank.padded * bank.placed, INFINITY);
    else bank.quantized.assign(bank.padded * 2 * bank.pairs, 0);
    bank.row_scale.assign(bank.padded, 0);
    bank.row_norm2.assign(bank.padded, INFINITY);
    for (int64_t i = 0; i < bank.rows; ++i) {
        place(bank, bank.embedding + int64_t(bank.order[i]) * bank.columns, buffer.data(), point.data());
        const int64_t panel = i / kPanel, lane = i % kPanel;
        if (bank.rank == kL1) {
            for (int64_t c = 0; c < bank.placed; ++c) bank.real[(panel * bank.placed + c) * kPanel + lane] = point[c];
            continue;
        }
        const Rounded row = round_to_int16(point.data(), bank.placed, quantized.data());
        put_row(bank, panel, lane, quantized.data());
        bank.row_scale[i] = row.scale;
        bank.row_norm2[i] = float(row.norm * row.norm);
        bank.widest = std::max(bank.widest, row.norm);
        if (row.norm >= kTiny) bank.lost = std::max(bank.lost, row.lost / row.norm);
    }
}

}  // namespace

// Keys to the k nearest rows: the limit from the sample, the proven selection, and float64 for the rest.
#pragma once

#include "score.cuh"

// The error bound e of a key, see retrieve.cu.
__device__ inline double error_bound(const Job& j, int q, double kth)
{
    if (j.rank == RANK_L1)
        return j.rounding * kth;
    const double x = j.query_norm[q];
    const double squared = kth + x * x;
    double reach = 2 * (x + sqrt(squared > 0 ? squared : 0.0));
    reach = reach < j.widest ? reach : j.widest;
    const double moved = j.moved * (2 * (x + reach) + j.moved);
    return j.rounding * reach * (reach + 2 * x) + j.floor * (1 + x + reach) + moved + j.gap;
}

// Grid n. The limit for keys of the bank, from the keys of the sample.
extern "C" __global__ void __launch_bounds__(BLOCK) set_limit(const Job j)
{
    __shared__ Tally tally;
    const int q = blockIdx.x;
    const float* key = j.key + q * j.key_stride;
    const Cut at = cut(
        tally, (u32)j.key_rows, (u32)j.sample_rank, [=](u32 i) { return (u64)ordered(key[i]); }, [](u32) { return true; });
    if (threadIdx.x != 0)
        return;
    const double kth = unordered((u32)at.key);
    const double limit = kth + 2 * error_bound(j, q, kth);
    const float rounded = (float)limit;
    j.limit[q] = (double)rounded < limit ? nextafterf(rounded, __uint_as_float(0x7f800000u)) : rounded;
    j.count[q] = 0;
}

__device__ inline void clear_chosen(const Job& j, int q)
{
    for (int w = threadIdx.x; w < j.words; w += BLOCK)
        j.chosen[(i64)q * j.words + w] = 0;
    __syncthreads();
}

__device__ __forceinline__ void choose_row(const Job& j, int q, u32 row)
{
    atomicOr(&j.chosen[(i64)q * j.words + row / 32], 1u << row % 32);
}

// Chooses the `want` of `n` rows with the smallest scores, the lower row first among equals.
template <class Row> __device__ void settle(const Job& j, int q, Tally& tally, u32 n, u32 want, Row row, const double* score)
{
    Cut at = {~0ull, 1, 1};
    u64 last = ~0ull;
    if (want < n) {
        at = cut(tally, n, want, [=](u32 i) { return ordered(score[i]); }, [](u32) { return true; });
        if (at.left < at.equal)
            last = cut(
                       tally, n, at.left, [=](u32 i) { return (u64)row(i); },
                       [=](u32 i) { return ordered(score[i]) == at.key; })
                       .key;
    }
    for (u32 i = threadIdx.x; i < n; i += BLOCK) {
        const u64 key = want < n ? ordered(score[i]) : 0;
        if (key < at.key || (key == at.key && row(i) <= last))
            choose_row(j, q, row(i));
    }
}

// Selects the rows proven to be neighbors by their keys, and lists the undecided. Returns how many are missing, or -1 if
// the keys are not enough for this query.
__device__ inline int choose_proven(const Job& j, int q, Tally& tally, u32& listed)
{
    const u32 n = j.filter ? j.count[q] : (u32)j.bank_rows;
    if (j.far[q] || n < (u32)j.k || (i64)n > j.capacity)
        return -1;
    const float* key = j.key + q * j.key_stride;
    const u32* row = j.row + q * j.capacity;
    const Cut at = cut(
        tally, n, (u32)j.k, [=](u32 i) { return (u64)ordered(key[i]); }, [](u32) { return true; });
    const double kth = unordered((u32)at.key), band = 2 * error_bound(j, q, kth);
    const double low = kth - band, high = kth + band;
    if (!(low <= high) || (j.filter && high > j.limit[q]))
        return -1;
    if (threadIdx.x == 0)
        listed = 0;
    clear_chosen(j, q);
    double proven[1] = {};
    for (u32 i = threadIdx.x; i < n; i += BLOCK) {
        if (key[i] > high)
            continue;
        const u32 r = j.filter ? row[i] : i;
        if (key[i] < low) {
            choose_row(j, q, r);
            ++proven[0];
        } else {
            j.band[q * j.capacity + atomicAdd(&listed, 1u)] = r;
        }
    }
    block_sums(tally, proven);
    return j.k - (int)proven[0];
}

// Grid n. Sets the bits of a query's k rows, or appends it to the list for `choose_exactly`.
extern "C" __global__ void __launch_bounds__(BLOCK, 2) choose(const Job j)
{
    __shared__ Tally tally;
    __shared__ u32 listed;
    const int q = blockIdx.x;
    const int want = choose_proven(j, q, tally, listed);
    if (want < 0 || (u32)want > listed) {
        if (threadIdx.x == 0)
            j.exact_list[atomicAdd(j.exact_count, 1u)] = q;
        return;
    }
    const u32* band = j.band + q * j.capacity;
    double* score = j.score + q * j.capacity;
    const u32 n = listed;
    if (want > 0 && (u32)want < n) {
        const double* query = widen(j, q);
        for (u32 i = threadIdx.x / 8; i < n; i += BLOCK / 8) {
            const double s = rank_score(j, query, band[i]);
            if (threadIdx.x % 8 == 0)
                score[i] = s;
        }
        __syncthreads();
    }
    if (want > 0)
        settle(j, q, tally, n, (u32)want, [=](u32 i) { return band[i]; }, score);
}

// Grid `slots`. The listed queries, every row in float64.
extern "C" __global__ void __launch_bounds__(BLOCK, 2) choose_exactly(const Job j)
{
    __shared__ Tally tally;
    double* score = j.exact_score + blockIdx.x * j.bank_rows;
    const u32 queries = *j.exact_count, rows = (u32)j.bank_rows;
    for (u32 e = blockIdx.x; e < queries; e += gridDim.x) {
        const int q = (int)j.exact_list[e];
        const double* query = widen(j, q);
        for (u32 i = threadIdx.x / 8; i < rows; i += BLOCK / 8) {
            const double s = rank_score(j, query, i);
            if (threadIdx.x % 8 == 0)
                score[i] = s;
        }
        clear_chosen(j, q);
        settle(j, q, tally, rows, (u32)j.k, [](u32 i) { return i; }, score);
    }
}

// Vectors to points, and points to keys, on tensor cores (cosine, l2) or as float32 sums (l1).
#pragma once

#include "job.cuh"

// Queries farther out than this, in units of the bank's size, are scored only in float64.
constexpr double FAR = 0x1p20;
// A point's largest component is scaled to 128 … 256, so that hi + lo keeps float32 precision.
constexpr int HALF_BITS = 8;
constexpr int SMALLEST = -100;

// One component of a vector's point, before scaling.
__device__ inline double component(const Placing& p, const float* from, int i, double length, double extra)
{
    if (i >= p.columns)
        return 0;
    const double value = i < p.d ? (double)from[i] / length : extra;
    return (value - p.centre[i]) * p.size;
}

__device__ inline double warp_sum(double value)
{
    for (int step = 1; step < 32; step *= 2)
        value += __shfl_xor_sync(WHOLE_WARP, value, step);
    return value;
}

// A warp per vector. Under l1 it only checks for invalid values.
extern "C" __global__ void __launch_bounds__(BLOCK) place(const Placing p)
{
    const int lane = threadIdx.x % 32;
    const i64 i = (i64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32;
    if (p.exact_count && blockIdx.x == 0 && threadIdx.x == 0)
        *p.exact_count = 0;
    if (i >= p.n)
        return;
    const float* from = p.from + i * p.d;
    double sum = 0;
    bool bad = false;
    for (int c = lane; c < p.d; c += 32) {
        const double value = from[c];
        bad |= !(fabs(value) <= p.largest);
        sum += value * value;
    }
    if (p.bad && bad)
        atomicMin(p.bad, (u32)i);
    const bool zero = !(warp_sum(sum) > 0);
    if (p.rank == RANK_L1) {
        if (lane == 0 && p.far)
            p.far[i] = 0;
        return;
    }
    const bool cosine = p.rank == RANK_COSINE;
    const double length = cosine && !zero ? sqrt(warp_sum(sum)) : 1.0;
    const double extra = zero ? 1.0 : 0.0;
    double biggest = 0, square = 0;
    for (int c = lane; c < p.columns; c += 32) {
        const double value = component(p, from, c, length, extra);
        biggest = fmax(biggest, fabs(value));
        square += value * value;
    }
    for (int step = 1; step < 32; step *= 2)
        biggest = fmax(biggest, __shfl_xor_sync(WHOLE_WARP, biggest, step));
    square = warp_sum(square);
    int exponent = 0;
    frexp(biggest, &exponent);
    exponent = exponent < SMALLEST ? SMALLEST : exponent;
    const bool far = p.far && ((cosine && zero) || !(biggest <= FAR));
    const double up = far ? 0.0 : ldexp(1.0, HALF_BITS - exponent);
    for (int c = lane; c < p.padded; c += 32) {
        const double value = far ? 0.0 : component(p, from, c, length, extra) * up;
        const u16 high = to_half((float)value);
        p.high[i * p.padded + c] = high;
        p.low[i * p.padded + c] = to_half((float)(value - (double)from_half(high)));
    }
    if (lane != 0)
        return;
    p.scale[i] = far ? 0.0f : (float)ldexp(1.0, exponent - HALF_BITS);
    p.square[i] = (float)square;
    if (p.norm)
        p.norm[i] = (float)(sqrt(square) * (1 + 0x1p-20));
    if (p.far)
        p.far[i] = far;
}

template <bool Filter> __device__ __forceinline__ void emit(const Job& j, int q, i64 row, float key, float limit)
{
    if (!Filter) {
        j.key[q * j.key_stride + row] = key;
    } else if (key <= limit) {
        const u32 slot = atomicAdd(j.count + q, 1u);
        if (slot < j.capacity) {
            j.key[q * j.key_stride + slot] = key;
            j.row[q * j.capacity + slot] = (u32)row;
        }
    }
}

// --- tensor cores ------------------------------------------------------------------------------------------------
// A block computes 128 × 128 keys, 16 columns at a time, with three such steps in flight. In shared memory a row of a step
// is two units of 16 bytes; bit 2 of the row swaps them, which avoids bank conflicts.

constexpr int TILE = 128, STEP = 16, STAGES = 3;
constexpr int UNITS = 2 * TILE;

__device__ __forceinline__ int unit_of(int row, int half) { return 2 * row + (half ^ ((row >> 2) & 1)); }

struct Stage {
    uint4 query_high[UNITS], query_low[UNITS], bank_high[UNITS], bank_low[UNITS];
};

__device__ __forceinline__ void load_step(const Job& j, Stage& stage, i64 query_row, i64 bank_row, int step)
{
    const int half = threadIdx.x % 2;
    const int unit = unit_of(threadIdx.x / 2, half);
    const i64 column = step * STEP + 8 * half;
    copy16(&stage.query_high[unit], j.query_high + query_row * j.padded + column);
    copy16(&stage.query_low[unit], j.query_low + query_row * j.padded + column);
    copy16(&stage.bank_high[unit], j.bank_high + bank_row * j.padded + column);
    copy16(&stage.bank_low[unit], j.bank_low + bank_row * j.padded + column);
}

// The lane's part of 16 rows by 16 columns, from row `row`.
__device__ __forceinline__ void fragment_a(u32 (&a)[4], const uint4* units, int row, int lane)
{
    const u32* words = (const u32*)units;
    const int upper = row + lane / 4, t = lane % 4;
    a[0] = words[4 * unit_of(upper, 0) + t];
    a[1] = words[4 * unit_of(upper + 8, 0) + t];
    a[2] = words[4 * unit_of(upper, 1) + t];
    a[3] = words[4 * unit_of(upper + 8, 1) + t];
}

// The lane's part of 16 columns of 8 rows, from row `row`.
__device__ __forceinline__ void fragment_b(u32 (&b)[2], const uint4* units, int row, int lane)
{
    const u32* words = (const u32*)units;
    b[0] = words[4 * unit_of(row + lane / 4, 0) + lane % 4];
    b[1] = words[4 * unit_of(row + lane / 4, 1) + lane % 4];
}

// 64 × 32 of the tile's products, by one warp.
__device__ __forceinline__ void multiply_step(float (&sum)[4][4][4], const Stage& stage, int warp_row, int warp_column,
                                              int lane)
{
    u32 bank_high[4][2], bank_low[4][2];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        fragment_b(bank_high[c], stage.bank_high, warp_column + 8 * c, lane);
        fragment_b(bank_low[c], stage.bank_low, warp_column + 8 * c, lane);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        u32 high[4], low[4];
        fragment_a(high, stage.query_high, warp_row + 16 * r, lane);
        fragment_a(low, stage.query_low, warp_row + 16 * r, lane);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            multiply(sum[r][c], low, bank_high[c]);
            multiply(sum[r][c], high, bank_low[c]);
            multiply(sum[r][c], high, bank_high[c]);
        }
    }
}

// |P|² - 2X·P of the warp's tile.
template <bool Filter>
__device__ __forceinline__ void emit_tile(const Job& j, const float (&sum)[4][4][4], i64 query_row, i64 bank_row, int lane)
{
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        const i64 q = query_row + 8 * r + lane / 4;
        if (q >= j.n)
            continue;
        const float twice = -2.0f * j.query_scale[q];
        const float limit = Filter ? j.limit[q] : 0.0f;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            const i64 row = bank_row + 8 * (c / 2) + 2 * (lane % 4) + c % 2;
            if (row < j.key_rows)
                emit<Filter>(j, (int)q, row,
                             fmaf(sum[r / 2][c / 2][2 * (r % 2) + c % 2] * twice, j.bank_scale[row], j.bank_square[row]),
                             limit);
        }
    }
}

template <bool Filter> __device__ __forceinline__ void product(const Job& j, Stage* stages)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 first_row = (i64)blockIdx.x * TILE, first_query = (i64)blockIdx.y * TILE;
    // Rows past the end read the last one; their keys are dropped.
    i64 query_row = first_query + threadIdx.x / 2, bank_row = first_row + threadIdx.x / 2;
    query_row = query_row < j.n ? query_row : j.n - 1;
    bank_row = bank_row < j.key_rows ? bank_row : j.key_rows - 1;
    const int steps = j.padded / STEP;
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps)
            load_step(j, stages[s], query_row, bank_row, s);
        copies_commit();
    }
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
    float sum[4][4][4] = {};
    for (int s = 0; s < steps; ++s) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps)
            load_step(j, stages[(s + STAGES - 1) % STAGES], query_row, bank_row, s + STAGES - 1);
        copies_commit();
        multiply_step(sum, stages[s % STAGES], warp_row, warp_column, lane);
    }
    emit_tile<Filter>(j, sum, first_query + warp_row, first_row + warp_column, lane);
}

// Grid (⌈key_rows / 128⌉, ⌈n / 128⌉).
extern "C" __global__ void __launch_bounds__(BLOCK, 2) product_all(const Job j)
{
    __shared__ Stage stages[STAGES];
    product<false>(j, stages);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 2) product_within(const Job j)
{
    __shared__ Stage stages[STAGES];
    product<true>(j, stages);
}

// --- l1 ----------------------------------------------------------------------------------------------------------
// A block computes 64 × 64 keys Σ|q - b|, a thread 4 × 4 of them.

constexpr int SQUARE = 64, DEPTH = 16, PITCH = SQUARE + 4;

struct alignas(16) Columns {
    float at[DEPTH][PITCH];
};

__device__ __forceinline__ void load_columns(Columns& to, const float* from, i64 first, i64 rows, int d, int column)
{
    for (int i = threadIdx.x; i < SQUARE * DEPTH; i += BLOCK) {
        const i64 row = first + i / DEPTH;
        const int c = column + i % DEPTH;
        to.at[i % DEPTH][i / DEPTH] = row < rows && c < d ? from[row * d + c] : 0.0f;
    }
}

template <bool Filter>
__device__ __forceinline__ void city_block(const Job& j, Columns& query, Columns& bank)
{
    const i64 first_row = (i64)blockIdx.x * SQUARE, first_query = (i64)blockIdx.y * SQUARE;
    const int x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
    float sum[4][4] = {};
    for (int column = 0; column < j.d; column += DEPTH) {
        __syncthreads();
        load_columns(query, j.query, first_query, j.n, j.d, column);
        load_columns(bank, j.bank, first_row, j.key_rows, j.d, column);
        __syncthreads();
        for (int c = 0; c < DEPTH; ++c) {
            const float4 q = *(const float4*)&query.at[c][y], b = *(const float4*)&bank.at[c][x];
            const float down[4] = {q.x, q.y, q.z, q.w}, along[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int r = 0; r < 4; ++r)
#pragma unroll
                for (int s = 0; s < 4; ++s)
                    sum[r][s] += fabsf(down[r] - along[s]);
        }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            const i64 q = first_query + y + r, row = first_row + x + s;
            if (q < j.n && row < j.key_rows)
                emit<Filter>(j, (int)q, row, sum[r][s], Filter ? j.limit[q] : 0.0f);
        }
}

// Grid (⌈key_rows / 64⌉, ⌈n / 64⌉).
extern "C" __global__ void __launch_bounds__(BLOCK) city_block_all(const Job j)
{
    __shared__ Columns query, bank;
    city_block<false>(j, query, bank);
}

extern "C" __global__ void __launch_bounds__(BLOCK) city_block_within(const Job j)
{
    __shared__ Columns query, bank;
    city_block<true>(j, query, bank);
}

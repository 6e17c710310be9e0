// Vectors to points, and points to keys, on tensor cores (cosine, l2) or as float32 sums (l1).
#pragma once

#include "job.cuh"

// Queries farther out than this, in units of the bank's size, are scored only in float64.
constexpr double FAR = 0x1p20;
// A point's largest component is scaled to 128 … 256, so that hi + lo keeps float32 precision.
constexpr int HALF_BITS = 8;
constexpr int SMALLEST = -100;
// Columns of a point that lie together, their high parts before their low ones; a block multiplies as many at a time.
constexpr int STEP = 16, PARTS = 2 * STEP;

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
extern "C" __global__ void __launch_bounds__(BLOCK, 4) place(const Placing p)
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
        u16* to = p.parts + (i64)p.n * (c / STEP * PARTS) + (i * PARTS + c % STEP);
        to[0] = high;
        to[STEP] = to_half((float)(value - (double)from_half(high)));
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

// --- keys within the limit -----------------------------------------------------------------------------------------
// A block lists its keys within the limits in shared memory, in the order of queries. One atomic addition for each query
// makes room in global memory, and the list is written there. A list longer than `Room` takes several rounds.

template <int Side, int Room> struct Kept {
    u32 count[Side], start[Side];
    // From a place in the list to a place among the query's keys.
    u32 shift[Side];
    u32 listed;
    float key[Room];
    u16 at[Room];   // query · Side + row
};

// Keys of Rows queries and Columns rows, held by one thread.
template <int Rows, int Columns> struct Keys {
    float at[Rows][Columns];
    // A bit for each key within the limit of its query.
    u32 within[(Rows * Columns + 31) / 32];

    __device__ __forceinline__ u32 within_row(int r) const
    {
        return within[r * Columns / 32] >> r * Columns % 32 & ((1u << Columns) - 1);
    }
};

// Counts the keys within the limits and makes room for them. `place` [Rows] becomes the place in the list of the first key
// of a row; returns the length of the list. query_of(r): the query, of the block's, of row r.
template <int Side, int Room, int Rows, int Columns, class Query>
__device__ __forceinline__ u32 find_places(const Job& j, Kept<Side, Room>& kept, const Keys<Rows, Columns>& keys, Query query_of,
                                           i64 first_query, u32 (&place)[Rows])
{
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < Side)
        kept.count[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        kept.listed = 0;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
        const u32 within = __popc(keys.within_row(r));
        place[r] = within ? atomicAdd(&kept.count[query_of(r)], within) : 0;
    }
    __syncthreads();
    if (threadIdx.x < Side) {
        const u32 count = kept.count[threadIdx.x];
        u32 through = count;
        for (int step = 1; step < 32; step *= 2) {
            const u32 other = __shfl_up_sync(WHOLE_WARP, through, step);
            through += lane >= step ? other : 0;
        }
        u32 start = lane == 31 ? atomicAdd(&kept.listed, through) : 0;
        start = __shfl_sync(WHOLE_WARP, start, 31) + through - count;
        kept.start[threadIdx.x] = start;
        if (count)
            kept.shift[threadIdx.x] = atomicAdd(j.count + first_query + threadIdx.x, count) - start;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < Rows; ++r)
        place[r] += kept.start[query_of(r)];
    return kept.listed;
}

// Appends the keys within the limits, and their rows, to those of their queries. query_of(r), row_of(c): the query and row,
// of the block's, which start at first_query and first_row.
template <int Side, int Room, int Rows, int Columns, class Query, class Row>
__device__ __forceinline__ void keep(const Job& j, Kept<Side, Room>& kept, Keys<Rows, Columns>& keys, Query query_of,
                                     Row row_of, i64 first_query, i64 first_row)
{
    u32 place[Rows];
    const u32 listed = find_places(j, kept, keys, query_of, first_query, place);
    u32 base = (u32)(query_of(0) * Side + row_of(0));
    for (u32 first = 0; first < listed; first += Room) {
        made_here(base);
        for (u32& word : keys.within)
            made_here(word);
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            u32 at = place[r] - first;
#pragma unroll
            for (int c = 0; c < Columns; ++c) {
                const bool within = keys.within_row(r) >> c & 1;
                const int step = (query_of(r) - query_of(0)) * Side + row_of(c) - row_of(0);
                if (within && at < Room) {
                    kept.key[at] = keys.at[r][c];
                    kept.at[at] = (u16)(base + step);
                }
                at += within;
            }
        }
        __syncthreads();
        const u32 here = listed - first < Room ? listed - first : Room;
        for (u32 i = threadIdx.x; i < here; i += BLOCK) {
            const u32 query = kept.at[i] / Side, row = kept.at[i] % Side;
            const u32 slot = kept.shift[query] + first + i;
            if (slot < j.capacity) {
                j.key[(first_query + query) * j.key_stride + slot] = kept.key[i];
                j.row[(first_query + query) * j.capacity + slot] = (u32)first_row + row;
            }
        }
        __syncthreads();
    }
}

// --- tensor cores ------------------------------------------------------------------------------------------------
// A block computes 128 × 128 keys, 16 columns at a time, with three such steps in flight. A step of 128 points is contiguous in
// global memory, so a warp copies four whole lines at a time. A row of a step is four units of 16 bytes, two of high parts and
// two of low ones; in shared memory the row swaps them, which avoids bank conflicts.

constexpr int TILE = 128, STAGES = 3;
constexpr int UNITS = 4 * TILE;

__device__ __forceinline__ int unit_of_four(int row, int unit) { return 4 * row + (unit ^ ((row >> 1) & 3)); }

struct Stage {
    uint4 query[UNITS], bank[UNITS];
};

// 128 points from `first`, of `rows`. Past the last are those of the next step, or anything after the last step; their keys are
// dropped.
__device__ __forceinline__ void load_points(uint4* to, const u16* parts, i64 rows, i64 first, int step)
{
    const u16* from = parts + (step * rows + first) * PARTS + 8 * threadIdx.x;
    const int unit = unit_of_four(threadIdx.x / 4, threadIdx.x % 4);
#pragma unroll
    for (int part = 0; part < UNITS / BLOCK; ++part)
        copy16(to + unit + part * BLOCK, from + part * 8 * BLOCK);
}

__device__ __forceinline__ void load_step(const Job& j, Stage& stage, i64 first_query, i64 first_row, int step)
{
    load_points(stage.query, j.query_parts, j.n, first_query, step);
    load_points(stage.bank, j.bank_parts, j.key_rows, first_row, step);
}

// 16 rows by 16 columns, from row `row`; the high parts, or the low ones.
__device__ __forceinline__ void fragment_a(u32 (&a)[4], const uint4* units, int row, bool low, int lane)
{
    load_matrices(a, &units[unit_of_four(row + lane % 16, lane / 16 + 2 * low)]);
}

// 16 columns of twice 8 rows, from row `row`: two words for each eight.
__device__ __forceinline__ void fragments_b(u32 (&b)[4], const uint4* units, int row, bool low, int lane)
{
    load_matrices(b, &units[unit_of_four(row + lane / 16 * 8 + lane % 8, lane / 8 % 2 + 2 * low)]);
}

// 64 × 32 of the tile's products, by one warp.
__device__ __forceinline__ void multiply_step(float (&sum)[4][4][4], const Stage& stage, int warp_row, int warp_column,
                                              int lane)
{
    u32 bank_high[2][4], bank_low[2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        fragments_b(bank_high[c], stage.bank, warp_column + 16 * c, false, lane);
        fragments_b(bank_low[c], stage.bank, warp_column + 16 * c, true, lane);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        u32 high[4], low[4];
        fragment_a(high, stage.query, warp_row + 16 * r, false, lane);
        fragment_a(low, stage.query, warp_row + 16 * r, true, lane);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            multiply(sum[r][c], low, &bank_high[c / 2][2 * (c % 2)]);
            multiply(sum[r][c], high, &bank_low[c / 2][2 * (c % 2)]);
            multiply(sum[r][c], high, &bank_high[c / 2][2 * (c % 2)]);
        }
    }
}

// What turns products into keys, and the list of keys; in the memory of the stages.
struct TileEnd {
    float2 query[TILE];   // -2·scale and limit
    float2 bank[TILE];    // scale and |P|²
    Kept<TILE, 7168> kept;
};

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fffffffu); }

// Queries and rows past the end get NaN.
template <bool Filter> __device__ __forceinline__ void load_end(const Job& j, TileEnd& end, i64 first_query, i64 first_row)
{
    const int i = threadIdx.x % TILE;
    if (threadIdx.x < TILE) {
        const i64 q = first_query + i;
        end.query[i] = q < j.n ? float2{-2.0f * j.query_scale[q], Filter ? j.limit[q] : 0.0f} : float2{0.0f, not_a_number()};
    } else {
        const i64 row = first_row + i;
        end.bank[i] = row < j.key_rows ? float2{j.bank_scale[row], j.bank_square[row]} : float2{0.0f, not_a_number()};
    }
}

// |P|² - 2X·P of the warp's 64 × 32 part of the tile.
template <bool Filter>
__device__ __forceinline__ void emit_tile(const Job& j, TileEnd& end, const float (&sum)[4][4][4], i64 first_query,
                                          i64 first_row, int warp_row, int warp_column)
{
    const int lane = threadIdx.x % 32, query = warp_row + lane / 4, row = warp_column + 2 * (lane % 4);
    const auto query_of = [=](int r) { return query + 8 * r; };
    const auto row_of = [=](int c) { return row + 8 * (c / 2) + c % 2; };
    Keys<8, 8> keys = {};
    __syncthreads();
    load_end<Filter>(j, end, first_query, first_row);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        const float2 of_query = end.query[query_of(r)];
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            const float2 of_row = end.bank[row_of(c)];
            const float key = fmaf(sum[r / 2][c / 2][2 * (r % 2) + c % 2] * of_query.x, of_row.x, of_row.y);
            keys.at[r][c] = key;
            if (Filter && key <= of_query.y)
                keys.within[r / 4] |= 1u << (8 * (r % 4) + c);
        }
    }
    if (Filter) {
        keep(j, end.kept, keys, query_of, row_of, first_query, first_row);
        return;
    }
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        const i64 q = first_query + query_of(r);
#pragma unroll
        for (int c = 0; c < 8; ++c)
            if (q < j.n && first_row + row_of(c) < j.key_rows)
                j.key[q * j.key_stride + first_row + row_of(c)] = keys.at[r][c];
    }
}

template <bool Filter> __device__ __forceinline__ void product(const Job& j, Stage* stages)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 first_row = (i64)blockIdx.x * TILE, first_query = (i64)blockIdx.y * TILE;
    const int steps = j.padded / STEP;
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps)
            load_step(j, stages[s], first_query, first_row, s);
        copies_commit();
    }
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
    float sum[4][4][4] = {};
    for (int s = 0; s < steps; ++s) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps)
            load_step(j, stages[(s + STAGES - 1) % STAGES], first_query, first_row, s + STAGES - 1);
        copies_commit();
        multiply_step(sum, stages[s % STAGES], warp_row, warp_column, lane);
    }
    static_assert(sizeof(TileEnd) <= STAGES * sizeof(Stage), "the end of a tile must fit into its stages");
    emit_tile<Filter>(j, *(TileEnd*)stages, sum, first_query, first_row, warp_row, warp_column);
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
__device__ __forceinline__ void city_block(const Job& j, Columns& query, Columns& bank, Kept<SQUARE, 1024>* kept)
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
    if (Filter) {
        Keys<4, 4> keys = {};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const i64 q = first_query + y + r;
            const float limit = q < j.n ? j.limit[q] : not_a_number();
#pragma unroll
            for (int s = 0; s < 4; ++s) {
                keys.at[r][s] = sum[r][s];
                if (sum[r][s] <= limit && first_row + x + s < j.key_rows)
                    keys.within[0] |= 1u << (4 * r + s);
            }
        }
        keep(j, *kept, keys, [=](int r) { return y + r; }, [=](int s) { return x + s; }, first_query, first_row);
        return;
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int s = 0; s < 4; ++s)
            if (first_query + y + r < j.n && first_row + x + s < j.key_rows)
                j.key[(first_query + y + r) * j.key_stride + first_row + x + s] = sum[r][s];
}

// Grid (⌈key_rows / 64⌉, ⌈n / 64⌉).
extern "C" __global__ void __launch_bounds__(BLOCK) city_block_all(const Job j)
{
    __shared__ Columns query, bank;
    city_block<false>(j, query, bank, nullptr);
}

extern "C" __global__ void __launch_bounds__(BLOCK) city_block_within(const Job j)
{
    __shared__ Columns query, bank;
    __shared__ Kept<SQUARE, 1024> kept;
    city_block<true>(j, query, bank, &kept);
}

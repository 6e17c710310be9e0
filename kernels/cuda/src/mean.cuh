// Selected rows to expression: distances and weights, then the gathered weighted mean.
#pragma once

#include "distance.cuh"

// --- weights -----------------------------------------------------------------------------------------------------

// Lists the query's selected rows in ascending order, from their bits.
__device__ inline void list_rows(const Job& j, int q, Tally& tally)
{
    u32* chosen = j.chosen + (i64)q * j.words;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 before = 0;
    for (int first = 0; first < j.words; first += BLOCK) {
        const int w = first + threadIdx.x;
        u32 bits = w < j.words ? chosen[w] : 0;
        u32 through = __popc(bits);
        for (int step = 1; step < 32; step *= 2) {
            const u32 other = __shfl_up_sync(WHOLE_WARP, through, step);
            through += lane >= step ? other : 0;
        }
        __syncthreads();
        if (lane == 31)
            tally.bin[warp] = through;
        __syncthreads();
        u32 place = before + through - __popc(bits);
        for (int i = 0; i < BLOCK / 32; ++i) {
            place += i < warp ? tally.bin[i] : 0;
            before += tally.bin[i];
        }
        for (; bits; bits &= bits - 1)
            j.near_row[(i64)q * j.k + place++] = (u32)w * 32 + __ffs((int)bits) - 1;
    }
}

// Normalizes the query, as `reference.directions` does; false if it is zero.
__device__ inline bool direct(const Job& j, double* query, double* length)
{
    if (threadIdx.x < 8) {
        const double square = pairwise(j, [=](int i) { return __dmul_rn(query[i], query[i]); });
        if (threadIdx.x == 0)
            *length = sqrt(square);
    }
    __syncthreads();
    const bool directed = *length > 0;
    for (int i = threadIdx.x; directed && i < j.d; i += BLOCK)
        query[i] = __ddiv_rn(query[i], *length);
    __syncthreads();
    return directed;
}

// The weight at `distance`, relative to the one at `nearest`.
__device__ inline double relative_weight(const Job& j, double distance, double nearest)
{
    if (j.weighting == UNIFORM)
        return 1;
    if (j.weighting == INVERSE_SQUARE) {
        if (!(nearest > 0))
            return distance == 0 ? 1 : 0;
        const double ratio = nearest / distance;
        return ratio * ratio;
    }
    double beyond = distance - nearest;
    if (j.weighting == SOFTMAX_SQUARED)
        beyond *= distance + nearest;
    return exp(-beyond / j.temperature);
}

// Distances of the query's k rows, by eight lanes each; returns the smallest and the largest.
template <class Measure>
__device__ __forceinline__ void measure(const Job& j, Tally& tally, const u32* row, double* distance, double& nearest,
                                        double& farthest, Measure distance_of)
{
    for (int i = threadIdx.x / 8; i < j.k; i += BLOCK / 8) {
        const double value = distance_of(row[i]);
        if (threadIdx.x % 8 == 0)
            distance[i] = value;
    }
    __syncthreads();
    u64 low = ~0ull, high = 0;
    for (int i = threadIdx.x; i < j.k; i += BLOCK) {
        const u64 bits = (u64)__double_as_longlong(distance[i]);
        low = bits < low ? bits : low;
        high = bits > high ? bits : high;
    }
    block_range(tally, low, high);
    nearest = __longlong_as_double((i64)low);
    farthest = __longlong_as_double((i64)high);
}

// Grid n.
extern "C" __global__ void __launch_bounds__(BLOCK, 2) weigh(const Job j)
{
    __shared__ Tally tally;
    __shared__ double length;
    const int q = blockIdx.x;
    // Each thread lists the words that it sets here.
    if (j.k == j.bank_rows)
        for (int w = threadIdx.x; w < j.words; w += BLOCK)
            j.chosen[(i64)q * j.words + w] = 32 * (w + 1) <= j.k ? ~0u : (1u << j.k % 32) - 1;
    list_rows(j, q, tally);
    const u32* row = j.near_row + (i64)q * j.k;
    double* distance = j.score + q * j.capacity;
    double nearest = 0, farthest = 0;
    bool enough = false;
    if (j.distance != DISTANCE_COSINE) {
        float* query = (float*)launch_memory();
        for (int i = threadIdx.x; i < j.d; i += BLOCK)
            query[i] = j.query[(i64)q * j.d + i];
        __syncthreads();
        measure(j, tally, row, distance, nearest, farthest, [=](u32 r) { return compensated_distance(j, query, r); });
        enough = farthest < 0x1p1000 && compensated_is_enough(j, nearest);
    }
    if (!enough) {
        double* query = widen(j, q);
        const bool directed = j.distance == DISTANCE_COSINE && direct(j, query, &length);
        measure(j, tally, row, distance, nearest, farthest, [=](u32 r) { return weight_distance(j, query, directed, r); });
    }
    double sums[2] = {};   // of weights, and of their squares
    for (int i = threadIdx.x; i < j.k; i += BLOCK) {
        const double weight = relative_weight(j, distance[i], nearest);
        j.weight[(i64)q * j.k + i] = (float)weight;
        sums[0] += weight;
        sums[1] += weight * weight;
    }
    block_sums(tally, sums);
    if (threadIdx.x == 0) {
        j.share[q] = (float)(1 / sums[0]);
        j.nearest[q] = (float)nearest;
        j.effective_k[q] = (float)(sums[0] * sums[0] / sums[1]);
    }
}

// Kahan summation: an error of 2u·Σ|terms| for any number of terms.
__device__ __forceinline__ void add(float& sum, float& lost, float term)
{
    const float corrected = __fadd_rn(term, -lost);
    const float next = __fadd_rn(sum, corrected);
    lost = __fadd_rn(__fadd_rn(next, -sum), -corrected);
    sum = next;
}

// --- gathered: a warp sums 128 genes of one query over its k rows --------------------------------------------------

constexpr int GATHER_BLOCK = 128, SLAB = 128, RUN = 8;

__device__ __forceinline__ float4 four_genes(const Job& j, i64 at)
{
    if (!j.half_expression)
        return *(const float4*)((const float*)j.expression + at);
    const uint2 halves = *(const uint2*)((const u16*)j.expression + at);
    float4 genes;
    genes.x = from_half((u16)(halves.x & 0xffff));
    genes.y = from_half((u16)(halves.x >> 16));
    genes.z = from_half((u16)(halves.y & 0xffff));
    genes.w = from_half((u16)(halves.y >> 16));
    return genes;
}

// Grid (⌈n / 4⌉, ⌈genes / 128⌉), blocks of 128. gene_stride is a multiple of 4.
extern "C" __global__ void __launch_bounds__(GATHER_BLOCK) gather(const Job j)
{
    const int lane = threadIdx.x % 32;
    const i64 q = (i64)blockIdx.x * (GATHER_BLOCK / 32) + threadIdx.x / 32;
    const int gene = blockIdx.y * SLAB + 4 * lane;
    if (q >= j.n)
        return;
    // Lanes past the last gene sum the first genes and write nothing.
    const int from = gene < j.gene_stride ? gene : 0;
    float sum[4] = {}, lost[4] = {};
    for (int first = 0; first < j.k; first += 32) {
        const int i = first + lane;
        const u32 own_row = i < j.k ? j.near_row[q * j.k + i] : 0;
        const float own_weight = i < j.k ? j.weight[q * j.k + i] : 0.0f;
        for (int run = 0; run < 32; run += RUN) {
            float part[4] = {};
#pragma unroll
            for (int r = run; r < run + RUN; ++r) {
                const u32 row = __shfl_sync(WHOLE_WARP, own_row, r);
                const float weight = __shfl_sync(WHOLE_WARP, own_weight, r);
                const float4 genes = four_genes(j, (i64)row * j.gene_stride + from);
                part[0] = fmaf(weight, genes.x, part[0]);
                part[1] = fmaf(weight, genes.y, part[1]);
                part[2] = fmaf(weight, genes.z, part[2]);
                part[3] = fmaf(weight, genes.w, part[3]);
            }
#pragma unroll
            for (int g = 0; g < 4; ++g)
                add(sum[g], lost[g], part[g]);
        }
    }
    for (int g = 0; g < 4; ++g)
        if (gene + g < j.genes)
            j.out[q * j.genes + gene + g] = sum[g] * j.share[q];
}

// The weighted mean as a matrix product: weights [n, M], built tile by tile from the selection bits, times expression.
//
// A block computes 64 queries by 128 genes, 32 bank rows (one word of bits) at a time. Tensor cores sum sixteen rows, with
// truncation; these sums are added in float32 with Kahan compensation.
#pragma once

#include "mean.cuh"

constexpr int MEAN_QUERIES = 64, MEAN_GENES = 128;

// Rows of 32 float16, four units of 16 bytes; the row swaps units in pairs, which avoids bank conflicts.
__device__ __forceinline__ int unit_of_four(int row, int unit) { return 4 * row + (unit ^ ((row >> 1) & 3)); }

struct MeanStage {
    uint4 weight_high[4 * MEAN_QUERIES], weight_low[4 * MEAN_QUERIES];
    uint4 gene_high[4 * MEAN_GENES], gene_low[4 * MEAN_GENES];
};

__device__ __forceinline__ void load_genes(const Job& j, MeanStage& stage, int first_gene, int word)
{
    for (int i = threadIdx.x; i < 4 * MEAN_GENES; i += BLOCK) {
        const int row = i / 4, unit = i % 4;
        const int gene = first_gene + row < j.genes ? first_gene + row : j.genes - 1;
        const i64 from = (i64)gene * j.bank_stride + 32 * word + 8 * unit;
        copy16(&stage.gene_high[unit_of_four(row, unit)], j.gene_high + from);
        if (j.gene_low)
            copy16(&stage.gene_low[unit_of_four(row, unit)], j.gene_low + from);
    }
}

// Weights of one query for 8 rows per thread, 4 threads per query; `place` counts the selected rows before this word.
__device__ __forceinline__ void make_weights(const Job& j, MeanStage& stage, i64 q, int word, int& place)
{
    const int part = threadIdx.x % 4;
    const u32 bits = q < j.n ? j.chosen[q * j.words + word] : 0;
    u32 high[4] = {}, low[4] = {};
#pragma unroll
    for (int b = 0; b < 8; ++b) {
        const u32 bit = 1u << (8 * part + b);
        if (bits & bit) {
            const float weight = 256.0f * j.weight[q * j.k + place + __popc(bits & (bit - 1))];
            const u16 upper = to_half(weight);
            high[b / 2] |= (u32)upper << 16 * (b % 2);
            low[b / 2] |= (u32)to_half(weight - from_half(upper)) << 16 * (b % 2);
        }
    }
    place += __popc(bits);
    const int unit = unit_of_four(threadIdx.x / 4, part);
    stage.weight_high[unit] = uint4{high[0], high[1], high[2], high[3]};
    stage.weight_low[unit] = uint4{low[0], low[1], low[2], low[3]};
}

// Like `fragment_a` and `fragment_b`, for columns 16·half … 16·half + 15.
__device__ __forceinline__ void weight_fragment(u32 (&a)[4], const uint4* units, int row, int half, int lane)
{
    const u32* words = (const u32*)units;
    const int upper = row + lane / 4, t = lane % 4;
    a[0] = words[4 * unit_of_four(upper, 2 * half) + t];
    a[1] = words[4 * unit_of_four(upper + 8, 2 * half) + t];
    a[2] = words[4 * unit_of_four(upper, 2 * half + 1) + t];
    a[3] = words[4 * unit_of_four(upper + 8, 2 * half + 1) + t];
}

__device__ __forceinline__ void gene_fragment(u32 (&b)[2], const uint4* units, int row, int half, int lane)
{
    const u32* words = (const u32*)units;
    b[0] = words[4 * unit_of_four(row + lane / 4, 2 * half) + lane % 4];
    b[1] = words[4 * unit_of_four(row + lane / 4, 2 * half + 1) + lane % 4];
}

// The warp's 32 queries by 32 genes, 16 bank rows.
__device__ __forceinline__ void mean_step(const Job& j, const MeanStage& stage, float (&sum)[2][4][4], float (&lost)[2][4][4],
                                          int warp_row, int warp_gene, int half, int lane)
{
    u32 high[2][4], low[2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        weight_fragment(high[r], stage.weight_high, warp_row + 16 * r, half, lane);
        weight_fragment(low[r], stage.weight_low, warp_row + 16 * r, half, lane);
    }
#pragma unroll
    for (int g = 0; g < 4; ++g) {
        u32 gene_high[2], gene_low[2] = {};
        gene_fragment(gene_high, stage.gene_high, warp_gene + 8 * g, half, lane);
        if (j.gene_low)
            gene_fragment(gene_low, stage.gene_low, warp_gene + 8 * g, half, lane);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float part[4] = {};
            multiply(part, low[r], gene_high);
            if (j.gene_low)
                multiply(part, high[r], gene_low);
            multiply(part, high[r], gene_high);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                add(sum[r][g][i], lost[r][g][i], part[i]);
        }
    }
}

// Grid (⌈genes / 128⌉, ⌈n / 64⌉).
extern "C" __global__ void __launch_bounds__(BLOCK) multiply_dense(const Job j)
{
    __shared__ MeanStage stages[2];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_gene = blockIdx.x * MEAN_GENES, warp_row = warp / 4 * 32, warp_gene = warp % 4 * 32;
    const i64 first_query = (i64)blockIdx.y * MEAN_QUERIES;
    int place = 0;
    float sum[2][4][4] = {}, lost[2][4][4] = {};
    load_genes(j, stages[0], first_gene, 0);
    copies_commit();
    make_weights(j, stages[0], first_query + threadIdx.x / 4, 0, place);
    for (int w = 0; w < j.words; ++w) {
        copies_wait<0>();
        __syncthreads();
        if (w + 1 < j.words) {
            MeanStage& next = stages[(w + 1) % 2];
            load_genes(j, next, first_gene, w + 1);
            copies_commit();
            make_weights(j, next, first_query + threadIdx.x / 4, w + 1, place);
        }
        mean_step(j, stages[w % 2], sum, lost, warp_row, warp_gene, 0, lane);
        mean_step(j, stages[w % 2], sum, lost, warp_row, warp_gene, 1, lane);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const i64 q = first_query + warp_row + 8 * r + lane / 4;
        if (q >= j.n)
            continue;
        const float share = j.share[q] / 256.0f;
#pragma unroll
        for (int g = 0; g < 8; ++g) {
            const int gene = first_gene + warp_gene + 8 * (g / 2) + 2 * (lane % 4) + g % 2;
            if (gene < j.genes)
                j.out[q * j.genes + gene] = sum[r / 2][g / 2][2 * (r % 2) + g % 2] * share * j.gene_scale[gene];
        }
    }
}

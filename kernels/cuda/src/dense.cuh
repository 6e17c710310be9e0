// The weighted mean as a matrix product: weights [n, M], built tile by tile from the selection bits, times expression.
//
// A block computes 64 queries by 128 genes, 32 bank rows (one word of bits) at a time. Tensor cores sum sixteen rows, with
// truncation; the sum of two such sums is added in float32 with Kahan compensation. Weights of the next word are fetched
// while this one is multiplied.
#pragma once

#include "mean.cuh"

constexpr int MEAN_QUERIES = 64, MEAN_GENES = 128;

// Rows of 32 float16, four units of 16 bytes; the row swaps units in pairs, which avoids bank conflicts.
__device__ __forceinline__ int unit_of_four(int row, int unit) { return 4 * row + (unit ^ ((row >> 1) & 3)); }

struct MeanStage {
    uint4 weight_high[4 * MEAN_QUERIES], weight_low[4 * MEAN_QUERIES];
    uint4 gene_high[4 * MEAN_GENES], gene_low[4 * MEAN_GENES];
};

__device__ __forceinline__ void load_genes(const Job& j, MeanStage& stage, u32 first_gene, int word)
{
#pragma unroll
    for (int part = 0; part < MEAN_GENES / 64; ++part) {
        const u32 row = threadIdx.x / 4 + 64 * part, unit = threadIdx.x % 4;
        const u32 gene = first_gene + row < (u32)j.genes ? first_gene + row : (u32)j.genes - 1;
        const i64 from = (i64)gene * j.bank_stride + 32 * word + 8 * unit;
        copy16(&stage.gene_high[unit_of_four((int)row, (int)unit)], j.gene_high + from);
        copy16(&stage.gene_low[unit_of_four((int)row, (int)unit)], j.gene_low + from);
    }
}

// The largest weight, 1, is scaled to this, so that a weight loses at most 2⁻⁴⁰ where its low part is subnormal.
constexpr float WEIGHT_SCALE = 0x1p15f;

__device__ __forceinline__ u32 selection_bits(const Job& j, i64 q, int word)
{
    return q < j.n && word < j.words ? j.chosen[q * j.words + word] : 0;
}

// Weights of one query for 8 rows of a thread, 4 threads a query; `place` counts the selected rows before this word.
__device__ __forceinline__ void fetch_weights(const Job& j, float (&weight)[8], i64 q, u32 bits, int& place)
{
    const int shift = 8 * (threadIdx.x % 4);
    const float* from = j.weight + q * j.k;
    int at = place + __popc(bits & ((1u << shift) - 1));
#pragma unroll
    for (int b = 0; b < 8; ++b) {
        const bool selected = bits >> (shift + b) & 1;
        weight[b] = selected ? from[at] : 0.0f;
        at += selected;
    }
    place += __popc(bits);
}

__device__ __forceinline__ void store_weights(MeanStage& stage, const float (&weight)[8])
{
    u32 high[4] = {}, low[4] = {};
#pragma unroll
    for (int b = 0; b < 8; ++b) {
        const float scaled = WEIGHT_SCALE * weight[b];
        const u16 upper = to_half(scaled);
        high[b / 2] |= (u32)upper << 16 * (b % 2);
        low[b / 2] |= (u32)to_half(scaled - from_half(upper)) << 16 * (b % 2);
    }
    const int unit = unit_of_four(threadIdx.x / 4, threadIdx.x % 4);
    stage.weight_high[unit] = uint4{high[0], high[1], high[2], high[3]};
    stage.weight_low[unit] = uint4{low[0], low[1], low[2], low[3]};
}

// 16 queries from `row`, bank rows 16·half … 16·half + 15.
__device__ __forceinline__ void weight_fragment(u32 (&a)[4], const uint4* units, int row, int half, int lane)
{
    load_matrices(a, &units[unit_of_four(row + lane % 16, 2 * half + lane / 16)]);
}

// 8 genes from `row`, all 32 bank rows: two words for each half.
__device__ __forceinline__ void gene_fragments(u32 (&b)[4], const uint4* units, int row, int lane)
{
    load_matrices(b, &units[unit_of_four(row + lane % 8, lane / 8)]);
}

// The warp's 16 queries by 64 genes, 32 bank rows.
__device__ __forceinline__ void mean_step(const MeanStage& stage, float (&sum)[8][4], float (&lost)[8][4], int warp_row,
                                          int warp_gene, int lane)
{
    u32 high[2][4], low[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        weight_fragment(high[half], stage.weight_high, warp_row, half, lane);
        weight_fragment(low[half], stage.weight_low, warp_row, half, lane);
    }
#pragma unroll
    for (int g = 0; g < 8; ++g) {
        u32 gene_high[4], gene_low[4];
        gene_fragments(gene_high, stage.gene_high, warp_gene + 8 * g, lane);
        gene_fragments(gene_low, stage.gene_low, warp_gene + 8 * g, lane);
        float part[2][4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            multiply(part[half], low[half], &gene_high[2 * half]);
            multiply(part[half], high[half], &gene_low[2 * half]);
            multiply(part[half], high[half], &gene_high[2 * half]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            add(sum[g][i], lost[g][i], __fadd_rn(part[0][i], part[1][i]));
    }
}

// Grid (⌈genes / 128⌉, ⌈n / 64⌉).
extern "C" __global__ void __launch_bounds__(BLOCK) multiply_dense(const Job j)
{
    __shared__ MeanStage stages[2];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_gene = blockIdx.x * MEAN_GENES, warp_row = warp / 2 * 16, warp_gene = warp % 2 * 64;
    const i64 first_query = (i64)blockIdx.y * MEAN_QUERIES;
    const i64 own_query = first_query + threadIdx.x / 4;
    int place = 0;
    float sum[8][4] = {}, lost[8][4] = {}, weight[8];
    load_genes(j, stages[0], first_gene, 0);
    copies_commit();
    fetch_weights(j, weight, own_query, selection_bits(j, own_query, 0), place);
    store_weights(stages[0], weight);
    u32 next_bits = selection_bits(j, own_query, 1);
#pragma unroll 1
    for (int w = 0; w < j.words; ++w) {
        copies_wait<0>();
        __syncthreads();
        MeanStage& next = stages[(w + 1) % 2];
        if (w + 1 < j.words) {
            load_genes(j, next, first_gene, w + 1);
            copies_commit();
        }
        fetch_weights(j, weight, own_query, next_bits, place);
        next_bits = selection_bits(j, own_query, w + 2);
        mean_step(stages[w % 2], sum, lost, warp_row, warp_gene, lane);
        store_weights(next, weight);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const i64 q = first_query + warp_row + 8 * r + lane / 4;
        if (q >= j.n)
            continue;
        const float share = j.share[q] / WEIGHT_SCALE;
#pragma unroll
        for (int g = 0; g < 16; ++g) {
            const int gene = first_gene + warp_gene + 8 * (g / 2) + 2 * (lane % 4) + g % 2;
            if (gene < j.genes)
                j.out[q * j.genes + gene] = sum[g / 2][2 * r + g % 2] * share * j.gene_scale[gene];
        }
    }
}

// The weighted mean as a matrix product: weights [n, M], built tile by tile from the selection bits, times expression.
//
// A block computes 64 queries by 128 genes, 32 bank rows (one word of bits) at a time; two blocks share a multiprocessor.
// Tensor cores sum sixteen rows, with truncation; the sum of two such sums is added in float32 with Kahan compensation.
// Genes of the next word are copied, and its weights fetched, while this one is multiplied.
#pragma once

#include "mean.cuh"

constexpr int MEAN_QUERIES = 64, MEAN_GENES = 128;
// float16 in a row of 32 bank rows: the high parts, then the low ones.
constexpr int WORD_PARTS = 64;

// Such a row is eight units of 16 bytes; the row's last three bits swap them, which avoids bank conflicts.
__device__ __forceinline__ int unit_of_eight(int row, int unit) { return 8 * row + (unit ^ (row & 7)); }

constexpr int WEIGHT_UNITS = 8 * MEAN_QUERIES, GENE_UNITS = 8 * MEAN_GENES;

// Two words: one that is multiplied, one that arrives.
struct MeanStages {
    uint4 weight[2 * WEIGHT_UNITS], gene[2 * GENE_UNITS];
};

// The number of this thread, not kept in a register.
__device__ __forceinline__ u32 own_thread()
{
    u32 thread = threadIdx.x;
    made_here(thread);
    return thread;
}

// Genes past the last one are those of the next word, or zeros after the last word; their means are dropped.
__device__ __forceinline__ void load_genes(const Job& j, MeanStages& stages, int word)
{
    const u32 thread = own_thread();
    const u16* from = j.gene_parts + (i64)word * (j.genes * WORD_PARTS) + (blockIdx.x * MEAN_GENES * WORD_PARTS + 8 * thread);
    uint4* to = stages.gene + word % 2 * GENE_UNITS + unit_of_eight(thread / 8, thread % 8);
#pragma unroll
    for (int part = 0; part < GENE_UNITS / BLOCK; ++part)
        copy16(to + part * BLOCK, from + part * (BLOCK / 8 * WORD_PARTS));
}

// The largest weight, 1, is scaled to this, so that a weight loses at most 2⁻⁴⁰ where its low part is subnormal.
constexpr float WEIGHT_SCALE = 0x1p15f;

// The query whose weights this thread fetches; its means are dropped if it is one past the last.
__device__ __forceinline__ u32 own_query(const Job& j)
{
    const u32 query = blockIdx.y * MEAN_QUERIES + own_thread() / 4;
    return query < (u32)j.n ? query : (u32)j.n - 1;
}

// The words of all queries are counted in 32 bits.
__device__ __forceinline__ u32 selection_bits(const Job& j, int word)
{
    return word < j.words ? j.chosen[own_query(j) * (u32)j.words + (u32)word] : 0;
}

// Weights of one query for 8 rows of a thread, 4 threads a query, from the weights of the word's selected rows.
__device__ __forceinline__ void fetch_weights(float (&weight)[8], const float* from, u32 bits)
{
    const u32 shift = 8 * (threadIdx.x % 4);
    from += __popc(bits & ((1u << shift) - 1));
    bits >>= shift;
#pragma unroll
    for (int b = 0; b < 8; ++b) {
        weight[b] = bits & 1 ? *from : 0.0f;
        from += bits & 1;
        bits >>= 1;
    }
}

__device__ __forceinline__ void store_weights(MeanStages& stages, int word, const float (&weight)[8])
{
    u32 high[4] = {}, low[4] = {};
#pragma unroll
    for (int b = 0; b < 8; ++b) {
        const float scaled = WEIGHT_SCALE * weight[b];
        const u16 upper = to_half(scaled);
        high[b / 2] |= (u32)upper << 16 * (b % 2);
        low[b / 2] |= (u32)to_half(scaled - from_half(upper)) << 16 * (b % 2);
    }
    const u32 thread = own_thread();
    uint4* units = stages.weight + word % 2 * WEIGHT_UNITS;
    const int at = unit_of_eight(thread / 4, thread % 4);
    units[at] = uint4{high[0], high[1], high[2], high[3]};
    units[at ^ 4] = uint4{low[0], low[1], low[2], low[3]};
}

// The warp's 16 queries by 64 genes, 32 bank rows. `lost` is what the sum so far lacks: Kahan's correction, negated, from
// which the tensor cores start. weight, gene: the first unit that this lane loads of each.
__device__ __forceinline__ void mean_step(const MeanStages& stages, float (&sum)[8][4], float (&lost)[8][4], int word)
{
    const u32 thread = own_thread(), lane = thread % 32, warp = thread / 32;
    const uint4* weight = stages.weight + word % 2 * WEIGHT_UNITS;
    const uint4* gene = stages.gene + word % 2 * GENE_UNITS;
    const int own_weight = unit_of_eight(warp / 2 * 16 + lane % 16, lane / 16);
    const int own_gene = unit_of_eight(warp % 2 * 64 + lane % 8, lane / 8);
    u32 high[2][4], low[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        load_matrices(high[half], weight + (own_weight ^ 2 * half));
        load_matrices(low[half], weight + (own_weight ^ (2 * half + 4)));
    }
#pragma unroll
    for (int g = 0; g < 8; ++g) {
        // Two words for each half.
        u32 gene_high[4], gene_low[4];
        load_matrices(gene_high, gene + own_gene + 64 * g);
        load_matrices(gene_low, gene + (own_gene ^ 4) + 64 * g);
        float second[4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float(&part)[4] = half ? second : lost[g];
            multiply(part, low[half], &gene_high[2 * half]);
            multiply(part, high[half], &gene_low[2 * half]);
            multiply(part, high[half], &gene_high[2 * half]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float term = __fadd_rn(lost[g][i], second[i]), next = __fadd_rn(sum[g][i], term);
            lost[g][i] = __fadd_rn(term, -__fadd_rn(next, -sum[g][i]));
            sum[g][i] = next;
        }
    }
}

// Grid (⌈genes / 128⌉, ⌈n / 64⌉).
extern "C" __global__ void __launch_bounds__(BLOCK, TWO_BLOCKS) multiply_dense(const Job j)
{
    __shared__ MeanStages stages;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_gene = blockIdx.x * MEAN_GENES, warp_row = warp / 2 * 16, warp_gene = warp % 2 * 64;
    const i64 first_query = (i64)blockIdx.y * MEAN_QUERIES;
    const float* from = j.weight + (i64)own_query(j) * j.k;
    float sum[8][4] = {}, lost[8][4] = {}, weight[8];
    load_genes(j, stages, 0);
    copies_commit();
    u32 bits = selection_bits(j, 0);
    fetch_weights(weight, from, bits);
    store_weights(stages, 0, weight);
    from += __popc(bits);
    bits = selection_bits(j, 1);
#pragma unroll 1
    for (int w = 0; w < j.words; ++w) {
        copies_wait<0>();
        __syncthreads();
        if (w + 1 < j.words) {
            load_genes(j, stages, w + 1);
            copies_commit();
        }
        // Their latency is another block's time: the tensor cores' operands leave no registers for them.
        fetch_weights(weight, from, bits);
        from += __popc(bits);
        store_weights(stages, w + 1, weight);
        bits = selection_bits(j, w + 2);
        mean_step(stages, sum, lost, w);
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

// Scores and distances of one pair in float64, with the bits of `reference.py`.
//
// numpy sums pairwise: up to 128 terms as eight interleaved sums, more by halves. Eight adjacent lanes hold those eight
// sums. Products and sums are rounded separately, as numpy's are, never fused.
#pragma once

#include "job.cuh"

// Most partial sums that pairwise summation holds at once, for d up to 4096.
constexpr int WAITING = 8;

// Σ term(i), i < d, returned to each of the eight lanes that call it together.
template <class Term> __device__ double pairwise(const Job& j, Term term)
{
    const int lane = threadIdx.x % 8;
    const u32 mask = 0xffu << (threadIdx.x % 32 - lane);
    double waiting[WAITING];
    double sum = 0;
    int depth = 0;
    for (int l = 0; l < j.leaves; ++l) {
        const int start = j.leaf[3 * l], length = j.leaf[3 * l + 1], joins = j.leaf[3 * l + 2];
        const int even = length & ~7;
        if (even) {
            sum = term(start + lane);
            for (int i = start + 8; i < start + even; i += 8)
                sum = __dadd_rn(sum, term(i + lane));
            for (int step = 1; step < 8; step *= 2)
                sum = __dadd_rn(sum, __shfl_xor_sync(mask, sum, step));
        } else {
            sum = 0;
        }
        for (int i = start + even; i < start + length; ++i)
            sum = __dadd_rn(sum, term(i));
        for (int joined = 0; joined < joins; ++joined) {
            --depth;
            // Unrolled, because registers cannot be indexed at run time.
#pragma unroll
            for (int i = 0; i < WAITING; ++i)
                if (i == depth)
                    sum = __dadd_rn(waiting[i], sum);
        }
#pragma unroll
        for (int i = 0; i < WAITING; ++i)
            if (i == depth)
                waiting[i] = sum;
        ++depth;
    }
    return sum;
}

// The query as float64 in dynamic shared memory, by the whole block.
__device__ inline double* widen(const Job& j, int q)
{
    double* query = launch_memory();
    for (int i = threadIdx.x; i < j.d; i += BLOCK)
        query[i] = j.query[(i64)q * j.d + i];
    __syncthreads();
    return query;
}

__device__ inline double l1_distance(const Job& j, const double* query, const float* row)
{
    return pairwise(j, [=](int i) { return fabs(__dsub_rn(query[i], (double)row[i])); });
}

__device__ inline double squared_distance(const Job& j, const double* query, const float* row)
{
    return pairwise(j, [=](int i) {
        const double difference = __dsub_rn(query[i], (double)row[i]);
        return __dmul_rn(difference, difference);
    });
}

// The rank score, smallest first.
__device__ inline double rank_score(const Job& j, const double* query, u32 index)
{
    const float* row = j.bank + (i64)index * j.d;
    if (j.rank == RANK_L1)
        return l1_distance(j, query, row);
    if (j.rank == RANK_L2)
        return squared_distance(j, query, row);
    const double dot = pairwise(j, [=](int i) { return __dmul_rn(query[i], (double)row[i]); });
    const double square = j.square_sum[index];
    const double score = __ddiv_rn(__dmul_rn(dot, dot), square > 0 ? square : 1.0);
    return dot > 0 ? -score : dot < 0 ? score : 0.0;
}

// The distance that weights are computed from. Under cosine, `query` is a unit vector, or zero if `directed` is false.
__device__ inline double weight_distance(const Job& j, const double* query, bool directed, u32 index)
{
    const float* row = j.bank + (i64)index * j.d;
    if (j.distance == DISTANCE_L1)
        return l1_distance(j, query, row);
    if (j.distance == DISTANCE_L2)
        return sqrt(squared_distance(j, query, row));
    const double length = sqrt(j.square_sum[index]);
    if (!directed || !(length > 0))
        return 1.0;
    const double chord = pairwise(j, [=](int i) {
        const double difference = __dsub_rn(query[i], __ddiv_rn((double)row[i], length));
        return __dmul_rn(difference, difference);
    });
    // Directions closer than 2⁻⁴⁸ count as equal.
    return chord > 0x1p-96 ? chord / 2 : 0.0;
}

// Distances in float32 with compensation: almost those in float64, on units that every device has many of.
//
// Sums and their rounding errors are kept apart: a difference of two float32 is exactly `difference + lost`, and a sum is
// `sum + rest`. With n = d/8 terms in a lane, |rest| <= (n + 4)u·sum, and rounding it twice for each term, thrice between
// lanes, loses at most 2n(n + 4)u² + 6(n + 4)u² + 4u² of the sum: less than (d + 64)²·2⁻⁵³. A squared distance loses as much,
// its root half of it. Squares neither overflow nor lose more by underflow while their sum lies within 2⁻⁸⁰ … 2¹²⁰.
#pragma once

#include "score.cuh"

// sum + error = a + b exactly (Knuth).
__device__ __forceinline__ void two_sum(float& sum, float& error, float a, float b)
{
    sum = __fadd_rn(a, b);
    const float from_b = __fadd_rn(sum, -a);
    const float from_a = __fadd_rn(sum, -from_b);
    error = __fadd_rn(__fadd_rn(a, -from_a), __fadd_rn(b, -from_b));
}

// Adds |q - b|, or its square, to sum + rest.
template <bool Squares> __device__ __forceinline__ void add_difference(float& sum, float& rest, float q, float b)
{
    float difference, lost, carried;
    two_sum(difference, lost, q, -b);
    float term = fabsf(difference), error = difference < 0 ? -lost : lost;
    if (Squares) {
        term = __fmul_rn(difference, difference);
        error = fmaf(2 * difference, lost, fmaf(difference, difference, -term));
    }
    two_sum(sum, carried, sum, term);
    rest = __fadd_rn(rest, __fadd_rn(carried, error));
}

// Σ|q - b| or Σ(q - b)², returned to each of the eight lanes that call it together.
template <bool Squares> __device__ __forceinline__ double sum_differences(const Job& j, const float* query, const float* row)
{
    const int lane = threadIdx.x % 8;
    const u32 mask = 0xffu << (threadIdx.x % 32 - lane);
    float sum = 0, rest = 0, carried;
    if (j.d % 4 == 0) {
        for (int i = 4 * lane; i < j.d; i += 32) {
            const float4 q = *(const float4*)(query + i), b = *(const float4*)(row + i);
            add_difference<Squares>(sum, rest, q.x, b.x);
            add_difference<Squares>(sum, rest, q.y, b.y);
            add_difference<Squares>(sum, rest, q.z, b.z);
            add_difference<Squares>(sum, rest, q.w, b.w);
        }
    } else {
        for (int i = lane; i < j.d; i += 8)
            add_difference<Squares>(sum, rest, query[i], row[i]);
    }
    for (int step = 1; step < 8; step *= 2) {
        const float other = __shfl_xor_sync(mask, sum, step), other_rest = __shfl_xor_sync(mask, rest, step);
        two_sum(sum, carried, sum, other);
        rest = __fadd_rn(__fadd_rn(rest, other_rest), carried);
    }
    return (double)sum + (double)rest;
}

// The l1 or l2 distance; infinity where float32 does not reach.
__device__ __forceinline__ double compensated_distance(const Job& j, const float* query, u32 index)
{
    const float* row = j.bank + (i64)index * j.d;
    if (j.distance == DISTANCE_L1)
        return sum_differences<false>(j, query, row);
    const double square = sum_differences<true>(j, query, row);
    return square >= 0x1p-80 && square <= 0x1p120 ? sqrt(square) : __longlong_as_double(0x7ff0000000000000ll);
}

// Whether these distances, the smallest of which is `nearest`, give weights to within u/2 before they are rounded.
//
// 1/distance² doubles an error, which is at most 2⁻²⁸·⁹. Softmax multiplies it by (nearest + distance)/temperature; a weight
// whose exponent is beyond 104 is 0 in float32, so the distances that count end at nearest + 104·temperature.
__device__ inline bool compensated_is_enough(const Job& j, double nearest)
{
    const double error = (double)(j.d + 64) * (j.d + 64) * 0x1p-53;
    if (j.weighting == SOFTMAX)
        return error * (2 * nearest / j.temperature + 104) <= 0x1p-25;
    if (j.weighting == SOFTMAX_SQUARED)
        return 2 * error * (2 * nearest * nearest / j.temperature + 104) <= 0x1p-25;
    return true;
}

// Kernel arguments. `kernels/cuda/job.py` has the same two structures, field for field.
#pragma once

#include "device.cuh"

enum Rank { RANK_COSINE, RANK_L2, RANK_L1 };
enum Distance { DISTANCE_L2, DISTANCE_L1, DISTANCE_COSINE };
enum Weighting { SOFTMAX, SOFTMAX_SQUARED, INVERSE_SQUARE, UNIFORM };

// Vectors to points.
struct Placing {
    const float* from;        // [n, d]
    const double* centre;     // [columns], in units of the (unit) vectors
    u16* parts;               // [padded / 16, n, 2, 16]: the points, times 256 / scale, as the sum of two float16
    float* scale;             // [n], a power of two
    float* square;            // [n] |point|²
    float* norm;              // [n] upper bound on |point|; null for the bank
    u32* far;                 // [n] 1 if the query is too far out or zero under cosine; null for the bank
    u32* bad;                 // first row with NaN, infinity or a value beyond `largest`; null for the bank
    u32* exact_count;         // set to 0; null for the bank
    double size;              // σ
    double largest;
    int n, d, columns, padded;
    int rank;
    int unused;
};

// Queries to expression. n queries, M = bank_rows; strides count elements.
struct Job {
    const float* query;           // [n, d]
    const float* bank;            // [M, d]; the sample's rows for keys of the sample under `l1`
    const double* square_sum;     // [M] Σb² as numpy adds it, where rank or distance is cosine
    const int* leaf;              // [leaves, 3] start, length, number of additions after it
    const u16* query_parts;       // [padded / 16, n, 2, 16]
    const float *query_scale, *query_norm;
    const u32* far;
    const u16* bank_parts;        // [padded / 16, key_rows, 2, 16]
    const float *bank_scale, *bank_square;
    float* key;                   // [n, key_stride]
    u32* row;                     // [n, capacity] bank row of each key, if only some are kept
    u32* band;                    // [n, capacity] rows undecided by their keys
    u32* count;                   // [n] keys within the limit, including those that did not fit
    float* limit;                 // [n] larger keys are dropped
    double* score;                // [n, capacity]
    u32* chosen;                  // [n, words] one bit per bank row
    u32* exact_list;              // [n] queries for choose_exactly
    u32* exact_count;
    double* exact_score;          // [blocks, M]
    u32* near_row;                // [n, k] ascending
    float* weight;                // [n, k] relative to the largest
    float* share;                 // [n] 1 / Σ weight
    const void* expression;       // [M, gene_stride] float or half
    const u16* gene_parts;        // [words, genes, 2, 32] expression·256/scale of 32 rows as the sum of two float16
    const float* gene_scale;      // [genes]
    float* out;                   // [n, genes]
    float* nearest;               // [n]
    float* effective_k;           // [n]
    double rounding, floor, widest, moved, gap;   // of the error bound
    double temperature;
    i64 bank_rows, key_rows, key_stride, capacity;
    int n, d, padded, k;
    int genes, gene_stride, words, leaves;
    int rank, distance, weighting;
    int sample_rank;              // rank of the sample key that sets a query's limit, from 1
    int filter;                   // 1 if only keys within the limit are kept
    int half_expression;
    int unused;
};

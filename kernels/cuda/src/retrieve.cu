// Retrieval on a GPU: N query embeddings against a bank of M rows, k neighbours each, to N rows of expression.
//
//     query [N, D], bank [M, D] float32 · expression [M, G] float32 or float16 · 1 <= k <= M, D <= 4096
//     out [N, G], nearest [N], effective_k [N] float32; near_row [N, k], ascending
//
// No matrix of N × M is ever held. A block of queries passes through these stages, each one launch:
//
//     place             queries to points: centred, scaled, split into two halves of 11 bits   product.cuh
//     product_all       keys of the queries with a sample of the bank, or with all of a small one
//     set_limit         per query, a key that a little more than k rows of the bank stay below   choose.cuh
//     product_within    keys with the whole bank, on tensor cores; those above the limit are dropped at once
//     choose            what the keys prove is taken, what they leave open is scored in float64
//     choose_exactly    the few queries that keys cannot serve: every row in float64
//     weigh             distances and weights of the k rows, in float64                       mean.cuh
//     gather            Σ weight·expression, row by row, for small k / M
//     multiply_dense    the same as a product of matrices on tensor cores, for large k / M    dense.cuh
//
// city_block_all and city_block_within stand in for the products under l1. A ladder leads here: choose_exactly alone is a
// whole, slow answer; product_all with choose is a fast one that writes and reads all keys; the limit spares it that.
//
// This file has been compiled for every architecture from sm_75 to sm_120 and run, unchanged, under an emulation of
// blocks, warps, barriers and tensor cores. It has not yet run on hardware: no speed is claimed for it.
//
// Why the chosen rows are exactly the reference's
// -----------------------------------------------
// l2 and cosine rank by the squared distance of points X = σ(q - μ) and P = σ(b - μ), with μ the bank's mean and σ a power of
// two that brings the bank's largest component to 1/2 … 1. For cosine, q and b are unit vectors first (|u - v|² = 2 - 2cos),
// and a zero row is one unit along an axis of its own. Less |X|², which is the same for all rows of a query, the score is
//
//     t = |P|² - 2X·P.
//
// A key s approximates t. Each point is scaled by a power of two of its own and split into halves, hi + lo, and X·P is
// summed as lo·hi + hi·lo + hi·hi in float32 by the tensor cores. With u = 2⁻²⁴:
//
//     splitting loses 2⁻²² of each component, and √D·2⁻³² of the norm where lo falls below the normal halves; dropping
//     lo·lo loses 2⁻²²|X||P|: together less than 16u|X||P|;
//     tensor cores take b >= 4 products at a time, align them with the sum so far, and cut below the 24 bits of the
//     largest: at most (b + 2)·2u·|X||P|(1 + 2⁻⁹) for each of the 3D/b times, less than 10D·u·|X||P|;
//     |P|² and the last sum round once each.
//
// So |s - t| <= e(|X|, |P|) = c·|P|(|P| + 2|X|) with c = 1.01(10D + 64)u, D as padded. Underflow adds at most
// D·2⁻⁹⁰(1 + |X| + |P|); cosine adds what unit vectors lose in float64, as nearest.py has it. Let v lie from the k-th
// smallest key on, below the next, and ρ = min(largest |P|, 2(|X| + √max(0, v + |X|²))), e = e(|X|, ρ). A row with |P| > ρ is
// so far away that neither its key nor its score is among the k smallest, as c < 1/40. Then
//
//     s < v - 2e      the row is a neighbour;
//     s > v + 2e      it is none;
//     between         it is scored in float64 as the reference scores it, to the bit: choose_exactly's arithmetic.
//
// For l1, s = Σ|q - b| in float32, off by at most (D + 8)u of itself. Keys above the limit are not looked at, so a query
// whose v + 2e exceeds its limit goes to choose_exactly, as do those with more keys than there is room for, those farther
// than 2²⁰ times the bank's size, and zero queries under cosine. Ties go to the lower row everywhere.
//
// Neighbours are summed in ascending order of their rows and every sum has one fixed order, so a query's result is the
// same bits in any block, whatever order threads run in.
//
// How near the mean is
// --------------------
// Distances are the reference's bits. Weights are rounded to float32 once. `gather` adds eight products at a time in float32
// and carries the error of adding these sums: at most (8 + 6)u·Σ w|E| < 1e-6·max|E|. `multiply_dense` splits weights and
// expression into halves (12u of a product) and lets tensor cores sum sixteen at a time (48u): at most 64u·Σ w|E| <
// 4e-6·max|E| if every error were the worst and of one sign; below 4e-7·max|E| in the tests, whose emulation truncates.

#include "product.cuh"

#include "choose.cuh"

#include "dense.cuh"

// Retrieval on a GPU: N query embeddings against a bank of M rows, k neighbors each, to N rows of expression.
//
//     query [N, D], bank [M, D] float32 · expression [M, G] float32 or float16 · 1 <= k <= M, D <= 4096
//     out [N, G], nearest [N], effective_k [N] float32; near_row [N, k], ascending
//
// There is no N × M matrix. A block of queries passes through these stages, one launch each:
//
//     place             queries to points: centered, scaled, split into two float16 parts     product.cuh
//     product_all       keys of the queries with a sample of the bank, or with all of a small one
//     set_limit         per query, a key that slightly more than k rows of the bank stay below  choose.cuh
//     product_within    keys with the whole bank, on tensor cores; keys above the limit are dropped immediately
//     choose            rows proven by their keys are selected; undecided rows are scored in float64
//     choose_exactly    the few queries whose keys are not enough: every row in float64
//     weigh             distances of the k rows in compensated float32, and their weights   mean.cuh
//     gather            Σ weight·expression, row by row, for small k / M
//     multiply_dense    the same as a product of matrices on tensor cores, for large k / M    dense.cuh
//
// city_block_all and city_block_within replace the products under l1. choose_exactly alone is a complete but slow solution;
// product_all with choose is fast but writes and reads all keys; the limit avoids that.
//
// This file compiles for every architecture from sm_75 to sm_120 and runs, unchanged, in an emulation of blocks, warps,
// barriers and tensor cores. It has not yet run on hardware, so its speed is unknown.
//
// Why the selected rows are exactly the reference's
// -------------------------------------------------
// l2 and cosine rank by the squared distance of points X = σ(q - μ) and P = σ(b - μ), with μ the bank's mean and σ a
// power of two that scales the bank's largest component to 1/2 … 1. For cosine, q and b are unit vectors first
// (|u - v|² = 2 - 2cos), and a zero row is a unit vector along an extra axis. Without |X|², which is the same for all rows
// of a query, the score is
//
//     t = |P|² - 2X·P.
//
// A key s approximates t. Each point is scaled by its own power of two and split into float16 parts, hi + lo, and X·P is
// summed as lo·hi + hi·lo + hi·hi in float32 by the tensor cores. With u = 2⁻²⁴:
//
//     splitting loses 2⁻²² of each component, and √D·2⁻³² of the norm where lo is subnormal; dropping lo·lo loses
//     2⁻²²|X||P|: together less than 16u|X||P|;
//     tensor cores take b >= 4 products at a time, align them with the running sum, and truncate below the 24 bits of the
//     largest: at most (b + 2)·2u·|X||P|(1 + 2⁻⁹) for each of the 3D/b steps, less than 10D·u·|X||P|;
//     |P|² and the final sum round once each.
//
// So |s - t| <= e(|X|, |P|) = c·|P|(|P| + 2|X|) with c = 1.01(10D + 64)u, D the padded columns. Underflow adds at most
// D·2⁻⁹⁰(1 + |X| + |P|); cosine adds the float64 error of unit vectors, as in nearest.py. Let v be at least the k-th
// smallest key and below the next one, ρ = min(largest |P|, 2(|X| + √max(0, v + |X|²))) and e = e(|X|, ρ). A row with
// |P| > ρ is so far away that neither its key nor its score is among the k smallest, as c < 1/40. Then
//
//     s < v - 2e      the row is a neighbor;
//     s > v + 2e      it is not;
//     otherwise       it is scored in float64 with the reference's bits, by the arithmetic of choose_exactly.
//
// For l1, s = Σ|q - b| in float32 has a relative error of at most (D + 8)u. Keys above the limit are dropped, so a query
// whose v + 2e exceeds its limit goes to choose_exactly, as do queries with more keys than fit, queries farther out than
// 2²⁰ times the bank's size, and zero queries under cosine. Ties always go to the lower row.
//
// Neighbors are summed in ascending row order and every sum has one fixed order, so a query's result has the same bits in
// any block and for any thread schedule.
//
// Accuracy of the mean
// --------------------
// l1 and l2 distances are accurate to 2⁻²⁸ at least, in compensated float32 (distance.cuh); cosine distances, and those of
// queries for which that is not enough, have the reference's bits. Weights differ by u at most, and are rounded to float32
// once. `gather` adds eight products at a time in float32 and compensates the sum of these: at most (8 + 6)u·Σ w|E| <
// 1e-6·max|E|.
//
// `multiply_dense` splits weights and expression into float16 parts (2u and 4u of a product, 4u for lo·lo, and 2⁻⁴⁰ of the
// largest weight where a low part is subnormal) and sums sixteen at a time on tensor cores (49u). Two such sums are added
// (u), and their sum is compensated (2u). The first of the two starts from the correction, at most 2u of the sum so far, and
// truncates it as well: 98u² in each of at most k words of rows, less than u/8 for k up to 2¹⁴. With the weights' 2u, the
// share's u and the last product's u: at most 67u·Σ w|E| < 4e-6·max|E| in the worst case; below 4e-7·max|E| in the tests,
// whose emulation truncates.

#include "product.cuh"

#include "choose.cuh"

#include "dense.cuh"

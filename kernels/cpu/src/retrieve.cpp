// Exact retrieval on a CPU: the k nearest bank rows of each query, their weights, and the weighted mean.
//
// A call works on tiles of at most 128 queries in the calling thread; the caller divides the queries among threads.
//
//   1 filter    Queries and bank rows, centered and scaled, are rounded to int16 with one scale each. Their integer
//               products are exact, so the error of an approximate score s has a known bound e. The bank
//               is stored in random order, so its first rows are a random sample; they give a limit that about k rows
//               pass. Only those rows are kept; there is no N×M matrix.
//   2 settle    s < s_k - 2e: a neighbor. s > s_k + 2e: not a neighbor. Otherwise: scored again in float64.
//   3 ties      Rows that float64 in this summation order cannot separate are returned for the definition to decide.
//   4 weigh     Distances to the chosen rows in float64, one range of the bank at a time so that it stays in cache.
//   5 sum       Expression is stored in slabs of 16 genes: a slab of the paper's banks fits a core's L2 cache.
//
// The bound and its proof are in provider.py. The inner loops are in lanes.h, compiled once per instruction set.

#include <memory>

#include "search.h"
#include "weigh.h"

// The C interface. Functions return 0 or a pointer; 1 or a null pointer means out of memory.

extern "C" {

int mclst_best_lanes() { return best_lanes(); }

void *mclst_bank(const float *embedding, int64_t rows, int64_t columns, int rank, int lanes) try {
    auto bank = std::make_unique<Bank>();
    bank->lanes = &lanes_at(lanes), bank->embedding = embedding, bank->rows = rows, bank->columns = columns;
    bank->rank = Rank(rank);
    bank->norm2.resize(rows), bank->inverse_norm.resize(rows);
    for (int64_t i = 0; i < rows; ++i) {
        double norm2 = 0;
        for (int64_t c = 0; c < columns; ++c) norm2 += double(embedding[i * columns + c]) * embedding[i * columns + c];
        bank->norm2[i] = norm2;
        bank->inverse_norm[i] = norm2 > 0 ? 1 / std::sqrt(norm2) : 0;
        bank->zero_axis |= rank == kCosine && norm2 == 0;
    }
    bank->placed = columns + bank->zero_axis, bank->pairs = (bank->placed + 1) / 2;
    if (bank->lanes->bytes) bank->pairs = (bank->pairs + 31) / 32 * 32;
    bank->padded = (rows + kPanel - 1) / kPanel * kPanel;
    find_frame(*bank);
    fill_panels(*bank);
    return bank.release();
} catch (const std::bad_alloc &) {
    return nullptr;
}

void mclst_free(void *bank) { delete static_cast<Bank *>(bank); }

// rows [count][k]: per query the `certain` selected rows, ascending. If these are fewer than k, the others are among the
// `tied` rows in ties [count][k + kTies]; if tied is -1, the query must be scored against every row.
int mclst_search(const void *bank, const float *queries, int64_t count, int64_t k, int32_t *rows, int32_t *certain,
                 int32_t *ties, int32_t *tied) try {
    const Bank &in = *static_cast<const Bank *>(bank);
    for (int64_t q = 0; q < count; q += kTile)
        search_tile(in, queries + q * in.columns, std::min(kTile, count - q), k, rows + q * k, certain + q,
                    ties + q * (k + kTies), tied + q);
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

int mclst_weigh(const void *bank, const float *queries, int64_t count, int64_t k, const int32_t *rows, int distance,
                int weighting, double temperature, float *weight, float *nearest, float *effective_k) try {
    weigh_tile(*static_cast<const Bank *>(bank), queries, count, k, rows, Distance(distance), Weighting(weighting),
               temperature, weight, nearest, effective_k);
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

// Writes out [count][genes] at the columns of one slab: `strips` times 16 genes from gene `first`.
int mclst_slab_sums(int lanes, const float *slab, int strips, int64_t bank_rows, const int32_t *rows, const float *weight,
                    int64_t count, int64_t k, float *out, int64_t genes, int64_t first, int64_t step) try {
    const auto sum = lanes_at(lanes).slab_sum[strips - 1];
    const int64_t width = 16 * strips, some = std::min(width, genes - first);
    std::vector<double> total(count * width, 0);
    std::vector<int64_t> at(count, 0);
    for (int64_t end = step; end - step < bank_rows; end += step)
        for (int64_t q = 0; q < count; ++q)
            at[q] = sum(slab, rows + q * k, weight + q * k, at[q], k, end, total.data() + q * width);
    for (int64_t q = 0; q < count; ++q)
        for (int64_t g = 0; g < some; ++g) out[q * genes + first + g] = float(total[q * width + g]);
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}
}

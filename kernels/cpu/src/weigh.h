// Distances and weights of the cpu provider, in float64.
#pragma once

#include "bank.h"

namespace {

// Distances [n] of `query` (a unit vector for cosine) to rows of the bank.
void distances(const Bank &bank, Distance distance, const double *query, double query_norm, const int32_t *rows, int64_t n,
               double *out) {
    const Measure measure = distance == kByL2   ? Measure::kSquares
                            : distance == kByL1 ? Measure::kAbsolutes
                                                : Measure::kUnitSquares;
    bank.lanes->pairs(measure, query, bank.embedding, rows, n, bank.columns, bank.inverse_norm.data(), out);
    for (int64_t j = 0; j < n; ++j) {
        if (distance == kByL2) out[j] = std::sqrt(out[j]);
        if (distance != kByCosine) continue;
        if (query_norm == 0 || bank.inverse_norm[rows[j]] == 0) out[j] = 1;
        else out[j] = out[j] > kSameDirection * kSameDirection ? out[j] / 2 : 0;
    }
}

// Replace distances [k] by weights that sum to 1, as reference.weights does.
void weigh(double *d, int64_t k, double nearest, Weighting weighting, double temperature) {
    double total = 0;
    for (int64_t j = 0; j < k; ++j) {
        if (weighting == kUniform) {
            d[j] = 1;
        } else if (weighting == kInverseSquare) {
            const double ratio = nearest > 0 ? nearest / d[j] : d[j] == 0;
            d[j] = ratio * ratio;
        } else {
            double excess = d[j] - nearest;
            if (weighting == kSoftmaxSquared) excess *= d[j] + nearest;
            d[j] = std::exp(-excess / temperature);
        }
        total += d[j];
    }
    for (int64_t j = 0; j < k; ++j) d[j] /= total;
}

void weigh_tile(const Bank &bank, const float *queries, int64_t count, int64_t k, const int32_t *rows, Distance distance,
                Weighting weighting, double temperature, float *weight, float *nearest, float *effective_k) {
    std::vector<double> wide(count * bank.columns), norm(count, 0), d(count * k);
    std::vector<int64_t> at(count, 0);
    for (int64_t q = 0; q < count; ++q) {
        double *to = wide.data() + q * bank.columns, norm2 = 0;
        for (int64_t c = 0; c < bank.columns; ++c) {
            to[c] = queries[q * bank.columns + c];
            norm2 += to[c] * to[c];
        }
        norm[q] = std::sqrt(norm2);
        if (distance == kByCosine && norm[q] > 0)
            for (int64_t c = 0; c < bank.columns; ++c) to[c] /= norm[q];
    }
    const int64_t step = std::max<int64_t>(1, (512 << 10) / (4 * bank.columns));
    for (int64_t end = step; end - step < bank.rows; end += step)
        for (int64_t q = 0; q < count; ++q) {
            const int64_t from = q * k + at[q];
            while (at[q] < k && rows[q * k + at[q]] < end) ++at[q];
            distances(bank, distance, wide.data() + q * bank.columns, norm[q], rows + from, q * k + at[q] - from,
                      d.data() + from);
        }
    for (int64_t q = 0; q < count; ++q) {
        double *of = d.data() + q * k, squares = 0;
        const double least = *std::min_element(of, of + k);
        weigh(of, k, least, weighting, temperature);
        for (int64_t j = 0; j < k; ++j) {
            weight[q * k + j] = float(of[j]);
            squares += of[j] * of[j];
        }
        nearest[q] = float(least);
        effective_k[q] = float(1 / squares);
    }
}

}  // namespace

// Means over the windows of a picture, in one pass over its pixels.
#pragma once

#include <cstdint>
#include <vector>

namespace mclst {

// Exact for numerators below 256 * area: the reciprocal errs by less than 1 in 2^40.
constexpr std::int64_t kMostArea = 1 << 16;
constexpr int kBits = 40;

template <typename Sum>
void mean_with(
    const std::uint8_t* pixels, std::int64_t width, const std::int64_t* rows, std::int64_t m,
    const std::int64_t* columns, std::int64_t n, std::uint8_t* out, std::vector<Sum>& sums) {
    const std::int64_t values = 3 * width;
    for (std::int64_t row = 0; row < m; ++row) {
        const std::uint8_t* line = pixels + rows[row] * values;
        Sum* const sum = sums.data();
        for (std::int64_t i = 0; i < values; ++i)
            sum[i] = line[i];
        for (std::int64_t y = rows[row] + 1; y < rows[row + 1]; ++y) {
            line += values;
            for (std::int64_t i = 0; i < values; ++i)
                sum[i] = static_cast<Sum>(sum[i] + line[i]);
        }
        const std::int64_t high = rows[row + 1] - rows[row];
        std::uint64_t area = 0, reciprocal = 0;
        for (std::int64_t column = 0; column < n; ++column, out += 3) {
            const std::int64_t first = columns[column], end = columns[column + 1];
            std::uint64_t total[3] = {0, 0, 0};
            for (const Sum* at = sum + 3 * first; at != sum + 3 * end; at += 3) {
                total[0] += at[0];
                total[1] += at[1];
                total[2] += at[2];
            }
            const std::uint64_t here = static_cast<std::uint64_t>(high * (end - first));
            if (here != area) {
                area = here;
                reciprocal = (std::uint64_t{1} << kBits) / area + 1;
            }
            for (int channel = 0; channel < 3; ++channel) {
                const std::uint64_t numerator = total[channel] + area / 2;
                out[channel] = static_cast<std::uint8_t>(
                    area < kMostArea ? numerator * reciprocal >> kBits : numerator / area);
            }
        }
    }
}

// pixels: uint8 [h, width, 3]. rows, columns: [m + 1], [n + 1], bounds of the windows; none is empty.
// out: uint8 [m, n, 3], rounded half up. Throws std::bad_alloc.
inline void area_mean(
    const std::uint8_t* pixels, std::int64_t width, const std::int64_t* rows, std::int64_t m,
    const std::int64_t* columns, std::int64_t n, std::uint8_t* out) {
    std::int64_t highest = 0;
    for (std::int64_t row = 0; row < m; ++row)
        highest = rows[row + 1] - rows[row] > highest ? rows[row + 1] - rows[row] : highest;
    if (255 * highest < 1 << 16) {
        std::vector<std::uint16_t> sums(3 * width);
        mean_with(pixels, width, rows, m, columns, n, out, sums);
    } else {
        std::vector<std::uint32_t> sums(3 * width);
        mean_with(pixels, width, rows, m, columns, n, out, sums);
    }
}

}  // namespace mclst

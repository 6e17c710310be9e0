// Means over the windows of a picture, rounded half up, in one pass over its pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mclst {

class AreaMean {
  public:
    // columns: [n + 1], bounds of the windows of a picture `width` px wide; none is empty. They stay the caller's.
    AreaMean(std::int64_t width, const std::int64_t* columns, std::int64_t n)
        : width_(width), columns_(columns), n_(n), scales_(kSmallArea + 1) {
        for (std::int64_t column = 0; column < n; ++column)
            widest_ = std::max(widest_, columns[column + 1] - columns[column]);
    }

    // pixels: uint8 [h, width, 3]. rows: [m + 1], bounds of the windows in `pixels`. out: uint8 [m, n, 3].
    // Throws std::bad_alloc.
    void operator()(const std::uint8_t* pixels, const std::int64_t* rows, std::int64_t m, std::uint8_t* out) {
        for (std::int64_t row = 0; row < m; ++row, out += 3 * n_) {
            const std::uint8_t* const lines = pixels + 3 * width_ * rows[row];
            const std::int64_t high = rows[row + 1] - rows[row];
            if (high * widest_ <= kSmallArea)
                small_windows(sum_lines(lines, high, sums_), high, out);
            else if (255 * high < 1 << 16)
                large_windows(sum_lines(lines, high, sums_), high, out);
            else
                large_windows(sum_lines(lines, high, large_sums_), high, out);
        }
    }

  private:
    // Windows of so many pixels have sums of 16 bits.
    static constexpr std::int64_t kSmallArea = 256;
    // Exact for numerators below 256 * area: the reciprocal errs by less than 1 in 2^40.
    static constexpr std::int64_t kMostArea = 1 << 16;
    static constexpr int kBits = 40;

    struct Scale {
        std::vector<float> add, by;
    };

    template <typename Sum>
    const Sum* sum_lines(const std::uint8_t* lines, std::int64_t high, std::vector<Sum>& sums) const {
        const std::int64_t values = 3 * width_;
        sums.resize(values + 1);
        Sum* const sum = sums.data();
        const std::uint8_t *const second = lines + values, *const third = second + values;
        std::int64_t y = std::min<std::int64_t>(high, 3);
        if (y == 3)
            for (std::int64_t i = 0; i < values; ++i)
                sum[i] = static_cast<Sum>(lines[i] + second[i] + third[i]);
        else if (y == 2)
            for (std::int64_t i = 0; i < values; ++i)
                sum[i] = static_cast<Sum>(lines[i] + second[i]);
        else
            for (std::int64_t i = 0; i < values; ++i)
                sum[i] = lines[i];
        for (; y < high; ++y) {
            const std::uint8_t* const line = lines + y * values;
            for (std::int64_t i = 0; i < values; ++i)
                sum[i] = static_cast<Sum>(sum[i] + line[i]);
        }
        return sum;
    }

    void small_windows(const std::uint16_t* sum, std::int64_t high, std::uint8_t* out) {
        // Three values of a pixel at a time; the fourth is the next pixel's, and overwritten by its sum.
        typedef std::uint16_t Four __attribute__((vector_size(8)));
        // Local, for bytes that are written might be a member's.
        const std::int64_t values = 3 * n_, *const columns = columns_;
        totals_.resize(values + 1);
        std::uint16_t* const total = totals_.data();
        for (std::int64_t column = 0; 3 * column < values; ++column) {
            Four here, next;
            std::memcpy(&here, sum + 3 * columns[column], sizeof here);
            for (std::int64_t x = columns[column] + 1; x < columns[column + 1]; ++x) {
                std::memcpy(&next, sum + 3 * x, sizeof next);
                here += next;
            }
            std::memcpy(total + 3 * column, &here, sizeof here);
        }
        Scale& scale = scales_[high];
        for (std::int64_t i = scale.by.size(); i < values; ++i) {
            const std::int64_t area = high * (columns[i / 3 + 1] - columns[i / 3]);
            scale.add.push_back(static_cast<float>(area / 2) + 0.5f);
            scale.by.push_back(1.0f / static_cast<float>(area));
        }
        // Exact: (whole number + 1/2)/area is at least 1/512 away from a whole number, and errs by less than 2^-14.
        const float *const add = scale.add.data(), *const by = scale.by.data();
        for (std::int64_t i = 0; i < values; ++i)
            out[i] = static_cast<std::uint8_t>(
                static_cast<std::int32_t>((static_cast<float>(total[i]) + add[i]) * by[i]));
    }

    template <typename Sum> void large_windows(const Sum* sum, std::int64_t high, std::uint8_t* out) const {
        std::uint64_t area = 0, reciprocal = 0;
        for (std::int64_t column = 0; column < n_; ++column, out += 3) {
            const std::int64_t first = columns_[column], end = columns_[column + 1];
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

    const std::int64_t width_;
    const std::int64_t* const columns_;
    const std::int64_t n_;
    std::int64_t widest_ = 0;
    std::vector<std::uint16_t> sums_, totals_;
    std::vector<std::uint32_t> large_sums_;
    // By height: half of each window's area, plus 1/2, and the area's reciprocal.
    std::vector<Scale> scales_;
};

}  // namespace mclst

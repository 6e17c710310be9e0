// Means over the windows of a picture that is in memory.

#include <cstdint>
#include <new>

#include "area_mean.h"

extern "C" {

// See `AreaMean`. Returns 1 if there is no memory.
int mclst_area_mean(
    const std::uint8_t* pixels, std::int64_t width, const std::int64_t* rows, std::int64_t m,
    const std::int64_t* columns, std::int64_t n, std::uint8_t* out) {
    try {
        mclst::AreaMean(width, columns, n)(pixels, rows, m, out);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // extern "C"

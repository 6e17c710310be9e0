// Decode a JPEG in bands of rows that stay in the processor's cache, and keep of each what will be read.
// One call without Python: between calls, a thread waits for Python's lock up to 5 ms.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "area_mean.h"
#include "jpeg_errors.h"

namespace {

struct Picture {
    const libjpeg::Library& library;
    libjpeg::Decompress jpeg;
    libjpeg::Failing failing;

    explicit Picture(const libjpeg::Library& used) : library(used) { prepare(library, jpeg, failing); }
    Picture(const Picture&) = delete;
    Picture& operator=(const Picture&) = delete;
    ~Picture() { library.destroy(&jpeg); }
};

// libjpeg is called from these functions alone: they hold nothing that a jump would leave behind.
bool begin(Picture& picture, const unsigned char* stream, std::int64_t bytes, std::int64_t width, std::int64_t height) {
    const libjpeg::Library& library = picture.library;
    libjpeg::Decompress& jpeg = picture.jpeg;
    if (setjmp(picture.failing.out))
        return false;
    library.create(&jpeg, libjpeg::VERSION, sizeof jpeg);
    library.memory_source(&jpeg, stream, bytes);
    if (library.read_header(&jpeg, 1) != libjpeg::HEADER_OK || jpeg.num_components != 3 || jpeg.image_width != width ||
        jpeg.image_height != height)
        return false;
    jpeg.out_color_space = libjpeg::OUTPUT_RGB;
    library.start(&jpeg);
    return jpeg.output_width == width && jpeg.output_height == height && jpeg.output_components == 3;
}

bool read(Picture& picture, unsigned char* out, std::int64_t rows) {
    if (setjmp(picture.failing.out))
        return false;
    const std::size_t row_bytes = 3 * std::size_t(picture.jpeg.output_width);
    for (std::int64_t row = 0; row < rows; ++row) {
        unsigned char* line = out + row * row_bytes;
        if (picture.library.read_scanlines(&picture.jpeg, &line, 1) != 1)
            return false;
    }
    return true;
}

bool finish(Picture& picture) {
    if (setjmp(picture.failing.out))
        return false;
    return picture.library.finish(&picture.jpeg) == 1;
}

// Copy what belongs to blocks of `side` px from the rows [top, bottom) of a picture; see `mclst_jpeg_blocks`.
void keep(
    const unsigned char* band, std::int64_t top, std::int64_t bottom, std::int64_t width, std::int64_t side,
    unsigned char* const* blocks) {
    const std::int64_t columns = (width + side - 1) / side;
    for (std::int64_t row = top / side; row * side < bottom; ++row) {
        const std::int64_t first = std::max(top, row * side), end = std::min(bottom, (row + 1) * side);
        for (std::int64_t column = 0; column < columns; ++column) {
            unsigned char* const block = blocks[row * columns + column];
            if (!block)
                continue;
            const std::int64_t left = column * side, bytes = 3 * std::min(side, width - left);
            for (std::int64_t y = first; y < end; ++y)
                std::memcpy(block + (y - row * side) * bytes, band + 3 * ((y - top) * width + left), bytes);
        }
    }
}

}  // namespace

extern "C" {

// Decode the JPEG in `stream`, of three colors and width x height px, to its end.
// library: of `mclst_jpeg_open`. blocks: of each block of `side` px, row by row, where its pixels go, uint8
// [h, w, 3], or null. rows: int64 [m + 1], from 0 to height. columns: int64 [n + 1], bounds of the windows of
// which `overview`, uint8 [m, n, 3] or null, has the means. band: how many of `rows` are decoded at a time.
// Returns 0; 1 after any complaint; 2 without memory.
int mclst_jpeg_blocks(
    const void* library, const unsigned char* stream, std::int64_t bytes, std::int64_t width, std::int64_t height,
    std::int64_t side, unsigned char* const* blocks, const std::int64_t* rows, std::int64_t m,
    const std::int64_t* columns, std::int64_t n, unsigned char* overview, std::int64_t band) {
    try {
        Picture picture(*static_cast<const libjpeg::Library*>(library));
        if (!begin(picture, stream, bytes, width, height))
            return 1;
        std::vector<unsigned char> pixels;
        std::vector<std::int64_t> windows;
        mclst::AreaMean area_mean(width, columns, n);
        for (std::int64_t first = 0; first < m; first += band) {
            const std::int64_t count = std::min(band, m - first), top = rows[first], bottom = rows[first + count];
            if (pixels.size() < 3 * std::size_t(bottom - top) * width)
                pixels.resize(3 * std::size_t(bottom - top) * width);
            if (!read(picture, pixels.data(), bottom - top))
                return 1;
            keep(pixels.data(), top, bottom, width, side, blocks);
            if (overview) {
                windows.clear();
                for (std::int64_t i = 0; i <= count; ++i)
                    windows.push_back(rows[first + i] - top);
                area_mean(pixels.data(), windows.data(), count, overview + 3 * first * n);
            }
        }
        return finish(picture) ? 0 : 1;
    } catch (const std::bad_alloc&) {
        return 2;
    }
}

}  // extern "C"

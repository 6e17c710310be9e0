// Find the JPEG segments of a batch of tiles, decode them, and cut the tiles from them: calls without Python.
// A segment's key is its number within its level, row by row, above which stand the bits of the level.
//
// Anything unusual (another header, a warning, another size, an error) fails the segment alone, and the caller
// decodes it in the usual way. So what is decoded here is what libjpeg-turbo decodes without any complaint.

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "jpeg_errors.h"

namespace {

// One stream to `out`, uint8 [height, width, 3]: its upper left part.
bool decode(
    const libjpeg::Library& library, const unsigned char* stream, std::size_t bytes, unsigned most_width,
    unsigned most_height, unsigned char* out, unsigned width, unsigned height, std::vector<unsigned char>& line) {
    libjpeg::Decompress jpeg;
    libjpeg::Failing failing;
    prepare(library, jpeg, failing);
    if (setjmp(failing.out)) {
        library.destroy(&jpeg);
        return false;
    }
    library.create(&jpeg, libjpeg::VERSION, sizeof jpeg);
    library.memory_source(&jpeg, stream, bytes);
    bool whole = false;
    if (library.read_header(&jpeg, 1) == libjpeg::HEADER_OK && jpeg.num_components == 3 &&
        jpeg.image_width >= width && jpeg.image_height >= height && jpeg.image_width <= most_width &&
        jpeg.image_height <= most_height) {
        jpeg.out_color_space = libjpeg::OUTPUT_RGB;
        library.start(&jpeg);
        line.resize(3 * std::size_t(jpeg.output_width));
        while (jpeg.output_scanline < jpeg.output_height) {
            const unsigned row = jpeg.output_scanline;
            const bool direct = row < height && jpeg.output_width == width;
            unsigned char* to = direct ? out + 3 * std::size_t(width) * row : line.data();
            if (library.read_scanlines(&jpeg, &to, 1) != 1)
                libjpeg::fail(&jpeg);
            if (row < height && !direct)
                std::memcpy(out + 3 * std::size_t(width) * row, line.data(), 3 * std::size_t(width));
        }
        library.finish(&jpeg);
        whole = true;
    }
    library.destroy(&jpeg);
    return whole;
}

bool read_all(int file, unsigned char* to, std::size_t count, std::int64_t offset) {
    while (count) {
        const ssize_t got = pread(file, to, count, offset);
        if (got <= 0)
            return false;
        to += got, count -= got, offset += got;
    }
    return true;
}

constexpr std::int64_t WITHIN_LEVEL = (std::int64_t(1) << 40) - 1;

// A level and its segments, px.
struct Grid {
    std::int64_t width, height, segment_width, segment_height;

    std::int64_t columns() const { return (width + segment_width - 1) / segment_width; }
};

// The part of a square at corner (x, y) that is inside the level; empty if left >= right or top >= bottom.
struct Inside {
    std::int64_t left, top, right, bottom;

    Inside(const Grid& grid, std::int64_t x, std::int64_t y, std::int64_t side)
        : left(std::max<std::int64_t>(x, 0)), top(std::max<std::int64_t>(y, 0)), right(std::min(x + side, grid.width)),
          bottom(std::min(y + side, grid.height)) {}

    bool empty() const { return left >= right || top >= bottom; }

    // Calls visit(column, row) for each segment.
    template <class Visit> void for_each_segment(const Grid& grid, Visit visit) const {
        for (std::int64_t row = top / grid.segment_height; row <= (bottom - 1) / grid.segment_height; ++row)
            for (std::int64_t column = left / grid.segment_width; column <= (right - 1) / grid.segment_width; ++column)
                visit(column, row);
    }
};

}  // namespace

extern "C" {

// The segments that `count` squares at corner (x, y) need: keys in ascending order, and how many squares need each.
// first: the key of the level's first segment. out: uint8 [count, side, side, 3], where squares that reach beyond
// the level are filled with `pad`. Returns the number of keys, or -1 without memory.
std::int64_t mclst_needed(
    std::int64_t count, const std::int64_t* corner, std::int64_t side, std::int64_t width, std::int64_t height,
    std::int64_t segment_width, std::int64_t segment_height, std::int64_t first, const unsigned char* pad,
    unsigned char* out, std::int64_t* key, std::int64_t* uses) {
    const Grid grid{width, height, segment_width, segment_height};
    std::int64_t found = 0;
    try {
        std::vector<std::int64_t> all;
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t x = corner[2 * i], y = corner[2 * i + 1];
            const Inside inside(grid, x, y, side);
            if (inside.left != x || inside.top != y || inside.right != x + side || inside.bottom != y + side)
                for (unsigned char* to = out + 3 * i * side * side; to < out + 3 * (i + 1) * side * side; to += 3)
                    std::memcpy(to, pad, 3);
            if (!inside.empty())
                inside.for_each_segment(grid, [&](std::int64_t column, std::int64_t row) {
                    all.push_back(first + row * grid.columns() + column);
                });
        }
        std::sort(all.begin(), all.end());
        for (std::size_t at = 0; at < all.size(); ++found) {
            const std::size_t start = at;
            while (at < all.size() && all[at] == all[start])
                ++at;
            key[found] = all[start];
            uses[found] = at - start;
        }
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return found;
}

// The libjpeg at `path`; null if it is none. It stays open.
void* mclst_jpeg_open(const char* path) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return nullptr;
    auto* library = new (std::nothrow) libjpeg::Library;
    const auto find = [&](const char* name, auto& function) {
        void* symbol = dlsym(handle, name);
        std::memcpy(&function, &symbol, sizeof symbol);
        return symbol != nullptr;
    };
    if (library && find("jpeg_std_error", library->std_error) && find("jpeg_CreateDecompress", library->create) &&
        find("jpeg_mem_src", library->memory_source) && find("jpeg_read_header", library->read_header) &&
        find("jpeg_start_decompress", library->start) && find("jpeg_read_scanlines", library->read_scanlines) &&
        find("jpeg_finish_decompress", library->finish) && find("jpeg_destroy_decompress", library->destroy))
        return library;
    delete library;
    dlclose(handle);
    return nullptr;
}

// Decode `count` segments of a level. all_offsets and all_bytes: of all segments of the level. A stream that begins
// with `begins` is decoded as `header` and its rest. out: where to, as large as the segment is within the level.
// done: 1 where it is decoded. Returns seconds of reading.
double mclst_jpeg_decode(
    const void* library, int file, std::int64_t count, const std::int64_t* key, const std::int64_t* all_offsets,
    const std::int64_t* all_bytes, const unsigned char* begins, std::int64_t begins_bytes,
    const unsigned char* header, std::int64_t header_bytes, std::int64_t width, std::int64_t height,
    std::int64_t segment_width, std::int64_t segment_height, unsigned char* const* out, unsigned char* done) {
    using Clock = std::chrono::steady_clock;
    Clock::duration reading{};
    std::memset(done, 0, count);
    const std::int64_t columns = Grid{width, height, segment_width, segment_height}.columns();
    try {
        std::vector<unsigned char> stream, line;
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t number = key[i] & WITHIN_LEVEL, column = number % columns, row = number / columns;
            const std::int64_t offset = all_offsets[number], bytes = all_bytes[number];
            if (bytes <= begins_bytes || offset <= 0)
                continue;
            // The stream behind the space for the header that it gets.
            stream.resize(header_bytes + bytes);
            unsigned char* data = stream.data() + header_bytes;
            const auto start = Clock::now();
            const bool read = read_all(file, data, bytes, offset);
            reading += Clock::now() - start;
            if (!read || std::memcmp(data, begins, begins_bytes) != 0)
                continue;
            unsigned char* first = data + begins_bytes - header_bytes;
            std::memcpy(first, header, header_bytes);
            const std::int64_t wide = std::min(segment_width, width - column * segment_width);
            const std::int64_t high = std::min(segment_height, height - row * segment_height);
            done[i] = decode(
                *static_cast<const libjpeg::Library*>(library), first, header_bytes + bytes - begins_bytes,
                segment_width, segment_height, out[i], wide, high, line);
        }
    } catch (const std::bad_alloc&) {
        // What is not done is decoded by the caller, who tells of missing memory.
    }
    return std::chrono::duration<double>(reading).count();
}

// Cut `count` squares at corner (x, y) of a level from its decoded segments.
// key: of `segments`, ascending; pixels: uint8 [h, w, 3] of each, or null. out: uint8 [count, side, side, 3], where
// pixels outside the level stay as they are. missing: 1 where a segment is; returns how many.
std::int64_t mclst_cut(
    std::int64_t count, const std::int64_t* corner, std::int64_t side, std::int64_t width, std::int64_t height,
    std::int64_t segment_width, std::int64_t segment_height, std::int64_t segments, const std::int64_t* key,
    unsigned char* const* pixels, unsigned char* out, unsigned char* missing) {
    const Grid grid{width, height, segment_width, segment_height};
    std::int64_t lacking = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t x = corner[2 * i], y = corner[2 * i + 1];
        const Inside inside(grid, x, y, side);
        missing[i] = 0;
        if (inside.empty())
            continue;
        inside.for_each_segment(grid, [&](std::int64_t column, std::int64_t row) {
            const std::int64_t wanted = (key[0] & ~WITHIN_LEVEL) + row * grid.columns() + column;
            const std::int64_t* const at = std::lower_bound(key, key + segments, wanted);
            const unsigned char* const from = pixels[at - key];
            if (!from) {
                missing[i] = 1;
                return;
            }
            const std::int64_t begin_x = column * segment_width, begin_y = row * segment_height;
            const std::int64_t wide = std::min(segment_width, width - begin_x);
            const std::int64_t x0 = std::max(begin_x, inside.left), x1 = std::min(begin_x + wide, inside.right);
            const std::int64_t y0 = std::max(begin_y, inside.top);
            const std::int64_t y1 = std::min(begin_y + segment_height, inside.bottom);
            for (std::int64_t line = y0; line < y1; ++line)
                std::memcpy(
                    out + 3 * ((i * side + line - y) * side + x0 - x),
                    from + 3 * ((line - begin_y) * wide + x0 - begin_x), 3 * (x1 - x0));
        });
        lacking += missing[i];
    }
    return lacking;
}

}  // extern "C"

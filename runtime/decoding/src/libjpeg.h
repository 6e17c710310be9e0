// What we use of libjpeg's interface with JPEG_LIB_VERSION 62, which libjpeg-turbo keeps stable (libjpeg.txt and
// jpeglib.h of libjpeg-turbo). The library is opened at run time: the build needs neither headers nor a library.
// A test compares these layouts with jpeglib.h; libjpeg itself compares version and size when it is called.
#pragma once

#include <csetjmp>
#include <cstddef>

namespace libjpeg {

constexpr int VERSION = 62, HEADER_OK = 1, OUTPUT_RGB = 2;
constexpr std::size_t DECOMPRESS_BYTES = 632;

struct Decompress;

// struct jpeg_error_mgr
struct ErrorManager {
    void (*error_exit)(Decompress*);
    void (*emit_message)(Decompress*, int level);
    void (*output_message)(Decompress*);
    void (*format_message)(Decompress*, char*);
    void (*reset_error_mgr)(Decompress*);
    int msg_code;
    union {
        int i[8];
        char s[80];
    } msg_parm;
    int trace_level;
    long num_warnings;
    const char* const* jpeg_message_table;
    int last_jpeg_message;
    const char* const* addon_message_table;
    int first_addon_message, last_addon_message;
};

// struct jpeg_decompress_struct, as far as it is read or written here
struct Decompress {
    ErrorManager* err;
    void *mem, *progress, *client_data;
    int is_decompressor, global_state;
    void* src;
    unsigned image_width, image_height;
    int num_components, jpeg_color_space, out_color_space;
    unsigned scale_num, scale_denom;
    double output_gamma;
    int buffered_image, raw_data_out, dct_method, do_fancy_upsampling, do_block_smoothing, quantize_colors;
    int dither_mode, two_pass_quantize, desired_number_of_colors;
    int enable_1pass_quant, enable_external_quant, enable_2pass_quant;
    unsigned output_width, output_height;
    int out_color_components, output_components, rec_outbuf_height, actual_number_of_colors;
    void* colormap;
    unsigned output_scanline;
    unsigned char rest[DECOMPRESS_BYTES - 172];
};
static_assert(sizeof(Decompress) == DECOMPRESS_BYTES, "the size that the library checks");

struct Library {
    ErrorManager* (*std_error)(ErrorManager*);
    void (*create)(Decompress*, int version, std::size_t size);
    void (*memory_source)(Decompress*, const unsigned char*, unsigned long);
    int (*read_header)(Decompress*, int require_image);
    int (*start)(Decompress*);
    unsigned (*read_scanlines)(Decompress*, unsigned char**, unsigned);
    int (*finish)(Decompress*);
    void (*destroy)(Decompress*);
};

}  // namespace libjpeg

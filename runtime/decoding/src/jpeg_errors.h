// libjpeg with every warning an error, so that no pixel is made up.
#pragma once

#include <csetjmp>
#include <cstring>

#include "libjpeg.h"

namespace libjpeg {

struct Failing {
    ErrorManager manager;
    std::jmp_buf out;
};

// Jumps to the last setjmp: no frame in between may hold an object with a destructor.
inline void fail(Decompress* jpeg) {
    std::longjmp(reinterpret_cast<Failing*>(jpeg->err)->out, 1);
}

// A negative level is a warning: pixels are made up from here on.
inline void on_message(Decompress* jpeg, int level) {
    if (level < 0)
        fail(jpeg);
}

inline void prepare(const Library& library, Decompress& jpeg, Failing& failing) {
    std::memset(&jpeg, 0, sizeof jpeg);
    jpeg.err = library.std_error(&failing.manager);
    failing.manager.error_exit = fail;
    failing.manager.emit_message = on_message;
}

}  // namespace libjpeg

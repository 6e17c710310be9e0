// PTX as C++: registers are unsigned words, an instruction is one of the functions `op_…`, and everything that reaches
// beyond a thread is a function of the machine (machine.cpp). Translated kernels include this file alone.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptx {

using pred = bool;
using u8 = uint8_t;
using s8 = int8_t;
using b8 = uint8_t;
using u16 = uint16_t;
using s16 = int16_t;
using b16 = uint16_t;
using f16 = _Float16;
using u32 = uint32_t;
using s32 = int32_t;
using b32 = uint32_t;
using f32 = float;
using u64 = uint64_t;
using s64 = int64_t;
using b64 = uint64_t;
using f64 = double;

// --- the machine -------------------------------------------------------------------------------------------------

struct Position {
    u32 thread, block_x, block_y, threads, blocks_x, blocks_y;
};

struct Kernel {
    const char* name;
    void (*run)(const char* parameters);
    u32 shared;         // bytes of static shared memory
    u32 basic_blocks;
};

extern const Kernel KERNELS[];
extern const int KERNEL_COUNT;

enum Access { READ, WRITE, UPDATE };   // UPDATE: atomic

Position position();
// Visits of this thread to each basic block.
u32* visits();
// Host addresses, after checks of alignment and bounds; `line` is the PTX line.
char* global(u64 address, int bytes, Access access, int line);
char* shared(u64 offset, int bytes, Access access, int line);
void barrier(const char* kernel, int line);
u32 shuffle(const char* mode, u32 value, u32 lane, u32 clamp, u32 mask);
void multiply(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]);
void load_matrices(u32 (&to)[4], u64 offset, int line);
void copy16(u64 offset, u64 address, int line);
void copies_commit();
void copies_wait(int open, int line);

// --- registers ---------------------------------------------------------------------------------------------------

// The low bits of a register, or of a literal, as a value.
template <class To, class From> To as(From word)
{
    To value{};
    std::memcpy(&value, &word, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
    return value;
}

template <class T> T load(const char* from)
{
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class T> void store(char* to, T value) { std::memcpy(to, &value, sizeof value); }

// --- arithmetic --------------------------------------------------------------------------------------------------
// Compiled without contraction, so each operation rounds once, to nearest.

template <class T> constexpr bool REAL = std::is_floating_point_v<T>;

template <class T> T op_fma(T a, T b, T c) { return std::fma(a, b, c); }
template <class T> T op_div(T a, T b) { return a / b; }
template <class T> T op_rem(T a, T b) { return a % b; }
template <class T> T op_neg(T a) { return -a; }
template <class T> T op_sqrt(T a) { return std::sqrt(a); }
template <class T> T op_rcp(T a) { return 1 / a; }

template <class T> T op_abs(T a)
{
    if constexpr (REAL<T>)
        return std::fabs(a);
    else
        return a < 0 ? (T)-(std::make_unsigned_t<T>)a : a;
}

template <class T> T op_min(T a, T b)
{
    if constexpr (REAL<T>)
        return std::fmin(a, b);
    else
        return a < b ? a : b;
}

template <class T> T op_max(T a, T b)
{
    if constexpr (REAL<T>)
        return std::fmax(a, b);
    else
        return a > b ? a : b;
}

// --- bits --------------------------------------------------------------------------------------------------------

template <class T> T op_shl(T a, u32 by) { return by >= 8 * sizeof(T) ? 0 : (T)(a << by); }
template <class T> T op_shr(T a, u32 by) { return by >= 8 * sizeof(T) ? (a < 0 ? (T)-1 : 0) : (T)(a >> by); }

template <class T> T op_not(T a)
{
    if constexpr (std::is_same_v<T, bool>)
        return !a;
    else
        return ~a;
}

template <class T> u32 op_popc(T a) { return (u32)std::popcount(a); }
template <class T> u32 op_clz(T a) { return (u32)std::countl_zero(a); }
// Distance of the highest set bit from the top, all ones if there is none.
template <class T> u32 op_bfind_shiftamt(T a) { return a ? (u32)std::countl_zero(a) : ~0u; }

template <class T> T op_brev(T a)
{
    T reversed = 0;
    for (int i = 0; i < (int)(8 * sizeof(T)); ++i)
        reversed |= (T)(a >> i & 1) << (8 * sizeof(T) - 1 - i);
    return reversed;
}

// `count` low bits of `a` inserted into `b` from bit `place`.
template <class T> T op_bfi(T a, T b, u32 place, u32 count)
{
    place &= 0xff;
    count &= 0xff;
    const T ones = count >= 8 * sizeof(T) ? (T)~(T)0 : (T)(((T)1 << count) - 1);
    return place >= 8 * sizeof(T) ? b : (T)((b & ~(T)(ones << place)) | ((a & ones) << place));
}

// `count` bits of `a` from bit `place`, unsigned types alone.
template <class T> T op_bfe(T a, u32 place, u32 count)
{
    static_assert(std::is_unsigned_v<T>);
    place &= 0xff;
    count &= 0xff;
    const T down = op_shr<T>(a, place);
    return count >= 8 * sizeof(T) ? down : (T)(down & (((T)1 << count) - 1));
}

// Four bytes of the eight of a and b, each by a digit of `selector`; sign replication is not used.
inline u32 op_prmt(u32 a, u32 b, u32 selector)
{
    const u64 bytes = (u64)b << 32 | a;
    u32 picked = 0;
    for (int i = 0; i < 4; ++i)
        picked |= (u32)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return picked;
}

// The high (l) or low (r) word of b:a shifted by up to 31 (wrap).
inline u32 op_shf_l_wrap(u32 a, u32 b, u32 by) { return (u32)(((u64)b << 32 | a) << (by & 31) >> 32); }
inline u32 op_shf_r_wrap(u32 a, u32 b, u32 by) { return (u32)(((u64)b << 32 | a) >> (by & 31)); }

inline u32 op_lop3(u32 a, u32 b, u32 c, u32 table)
{
    u32 result = 0;
    for (int i = 0; i < 32; ++i)
        result |= (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i;
    return result;
}

// --- comparison and conversion -----------------------------------------------------------------------------------

// False for NaN, unlike C++'s.
template <class T> bool op_ne(T a, T b) { return a < b || a > b; }
template <class T> bool unordered(T a, T b) { return a != a || b != b; }
template <class T> bool op_equ(T a, T b) { return unordered(a, b) || a == b; }
template <class T> bool op_neu(T a, T b) { return unordered(a, b) || a != b; }
template <class T> bool op_ltu(T a, T b) { return unordered(a, b) || a < b; }
template <class T> bool op_leu(T a, T b) { return unordered(a, b) || a <= b; }
template <class T> bool op_gtu(T a, T b) { return unordered(a, b) || a > b; }
template <class T> bool op_geu(T a, T b) { return unordered(a, b) || a >= b; }
template <class T> bool op_nan(T a, T b) { return unordered(a, b); }
template <class T> bool op_num(T a, T b) { return !unordered(a, b); }

// Truncated and saturated; NaN becomes 0.
template <class To, class From> To op_cvt_rzi(From value)
{
    if (value != value)
        return 0;
    const From whole = std::trunc(value);
    if (whole >= (From)std::numeric_limits<To>::max())
        return std::numeric_limits<To>::max();
    if (whole <= (From)std::numeric_limits<To>::min())
        return std::numeric_limits<To>::min();
    return (To)whole;
}

}  // namespace ptx

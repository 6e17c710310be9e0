// Emulates a GPU on one CPU thread, so that a .cu file runs unchanged without a device.
//
// Blocks run one after another. Each thread of a block is a fiber that runs until it must wait: at a barrier, or at a warp
// intrinsic, which returns once every lane of its mask has reached it. Lanes that disagree about mask or intrinsic, and
// waits that never end, are errors. Shared memory starts as 0xFF bytes in every block. An asynchronous copy arrives only
// when it is waited for; its target holds 0xFF until then. A tensor-core product truncates as hardware may: addends are
// aligned to the largest and cut to 24 bits, four products at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define HOST_CUDA_ASAN 1
#else
#define HOST_CUDA_ASAN 0
#endif

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#if HOST_CUDA_ASAN
// The sanitizer does not guard variables with a section attribute.
#define __shared__ static
#else
#define __shared__ static __attribute__((section("host_shared")))
extern "C" char __start_host_shared[], __stop_host_shared[];
#endif

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct Index {
    unsigned x, y, z;
};

namespace host {

// --- fibers ------------------------------------------------------------------------------------------------------

constexpr size_t STACK = 64 << 10;
constexpr int LANES = 32, WORDS = 12;

struct Failure {
    std::string text;
};

#ifdef __x86_64__
// Saves the callee-saved registers and the stack pointer; continues on the other stack.
extern "C" void host_cuda_switch(void** from, void* to);
asm(R"(
.text
.type host_cuda_switch, @function
host_cuda_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size host_cuda_switch, .-host_cuda_switch
)");
#endif

struct Fiber {
    std::vector<char> stack;
#ifdef __x86_64__
    void* place = nullptr;
#else
    ucontext_t place;
#endif
    Index index{};
    int thread = 0;
    bool done = false;
    // Waits while *watched == seen.
    const uint64_t* watched = nullptr;
    uint64_t seen = 0;
    const char* at = "its start";
    struct Copy {
        char* to;
        const char* from;
        int group;
    };
    std::vector<Copy> copies;
    int groups = 0;
};

struct Meeting {
    int arrived = 0;
    const char* kind = nullptr;
    unsigned mask = 0;
    uint64_t generation = 0;
};

// Exchanges of a warp, or of eight lanes, alternate between two tables, so that none is overwritten while it is read.
struct Warp {
    Meeting meeting[2][LANES];
    uint64_t table[2][2][LANES][WORDS];
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Fiber* current = nullptr;
inline Index block_index, block_size, grid_size;
inline std::vector<char> launch_memory;
inline std::function<void()> body;
inline int alive, at_barrier;
inline uint64_t barriers;
inline const char* barrier_file;
inline int barrier_line;
inline std::string failure;

#ifdef __x86_64__
inline void* scheduler;
#else
inline ucontext_t scheduler;
#endif
inline const void* scheduler_stack;
inline size_t scheduler_size;

inline void to_scheduler()
{
#if HOST_CUDA_ASAN
    void* fake;
    __sanitizer_start_switch_fiber(current->done ? nullptr : &fake, scheduler_stack, scheduler_size);
#endif
#ifdef __x86_64__
    host_cuda_switch(&current->place, scheduler);
#else
    swapcontext(&current->place, &scheduler);
#endif
#if HOST_CUDA_ASAN
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size);
#endif
}

[[noreturn]] inline void fail(const std::string& text)
{
    if (failure.empty())
        failure = text + " in thread " + std::to_string(current->thread) + " of block (" + std::to_string(block_index.x) + ", "
                  + std::to_string(block_index.y) + ")";
    for (;;)
        to_scheduler();
}

inline void wait(const uint64_t* watched, uint64_t seen, const char* at)
{
    current->watched = watched;
    current->seen = seen;
    current->at = at;
    while (*watched == seen)
        to_scheduler();
    current->watched = nullptr;
}

inline void leave_barrier()
{
    if (at_barrier && at_barrier == alive) {
        at_barrier = 0;
        ++barriers;
    }
}

inline void run_fiber()
{
#if HOST_CUDA_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    body();
    if (!current->copies.empty())
        fail("an asynchronous copy is never waited for");
    current->done = true;
    --alive;
    leave_barrier();
    to_scheduler();
    std::abort();
}

inline void prepare(Fiber& fiber)
{
    if (fiber.stack.empty())
        fiber.stack.resize(STACK);
    fiber.done = false;
    fiber.watched = nullptr;
    fiber.at = "its start";
    fiber.copies.clear();
    fiber.groups = 0;
#ifdef __x86_64__
    auto top = (uintptr_t)(fiber.stack.data() + STACK) & ~(uintptr_t)15;
    void** frame = (void**)(top - 16);
    frame[0] = (void*)run_fiber;
    frame[1] = nullptr;
    fiber.place = frame - 6;
#else
    getcontext(&fiber.place);
    fiber.place.uc_stack.ss_sp = fiber.stack.data();
    fiber.place.uc_stack.ss_size = STACK;
    makecontext(&fiber.place, run_fiber, 0);
#endif
}

inline void resume(Fiber& fiber)
{
    current = &fiber;
#if HOST_CUDA_ASAN
    void* fake;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.data(), STACK);
#endif
#ifdef __x86_64__
    host_cuda_switch(&scheduler, fiber.place);
#else
    swapcontext(&scheduler, &fiber.place);
#endif
#if HOST_CUDA_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// --- launches ----------------------------------------------------------------------------------------------------

// The order in which the threads of a block run: forward, reverse, or shuffled in each round.
inline int order = 0;
inline std::mt19937 chance(7);

inline void run_block(int threads)
{
#if !HOST_CUDA_ASAN
    std::memset(__start_host_shared, 0xFF, __stop_host_shared - __start_host_shared);
#endif
    std::fill(launch_memory.begin(), launch_memory.end(), (char)0xFF);
    warps.assign((threads + LANES - 1) / LANES, Warp{});
    at_barrier = 0;
    alive = threads;
    std::vector<int> turn(threads);
    for (int t = 0; t < threads; ++t) {
        prepare(fibers[t]);
        fibers[t].thread = t;
        fibers[t].index = {t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y)};
        turn[t] = order == 1 ? threads - 1 - t : t;
    }
    while (alive > 0) {
        if (order == 2)
            std::shuffle(turn.begin(), turn.end(), chance);
        bool moved = false;
        for (int t : turn) {
            Fiber& fiber = fibers[t];
            if (fiber.done || (fiber.watched && *fiber.watched == fiber.seen))
                continue;
            resume(fiber);
            moved = true;
            if (!failure.empty())
                return;
        }
        if (!moved) {
            for (const Fiber& fiber : fibers)
                if (!fiber.done && fiber.watched) {
                    failure = "thread " + std::to_string(fiber.thread) + " waits for ever at " + fiber.at;
                    return;
                }
        }
    }
}

// Runs `kernel` over a grid; returns an error message, or an empty string.
inline std::string launch(Index grid, Index block, size_t shared, std::function<void()> kernel)
{
    grid_size = grid;
    block_size = block;
    const int threads = (int)(block.x * block.y * block.z);
    fibers.resize(threads);
    launch_memory.resize(shared);
    body = std::move(kernel);
    failure.clear();
    for (unsigned z = 0; z < grid.z && failure.empty(); ++z)
        for (unsigned y = 0; y < grid.y && failure.empty(); ++y)
            for (unsigned x = 0; x < grid.x && failure.empty(); ++x) {
                block_index = {x, y, z};
                run_block(threads);
            }
    return failure;
}

// --- asynchronous copies ------------------------------------------------------------------------------------------

// All but the `open` most recent groups of the thread's copies arrive; `arrived` is told of each.
template <class Arrived> void arrive(int open, Arrived arrived)
{
    size_t kept = 0;
    for (const Fiber::Copy& copy : current->copies)
        if (copy.group < current->groups - open) {
            std::memcpy(copy.to, copy.from, 16);
            arrived(copy);
        } else {
            current->copies[kept++] = copy;
        }
    current->copies.resize(kept);
}

// --- warps -------------------------------------------------------------------------------------------------------

// Publishes `n` words and returns every lane's, once all lanes of the mask have arrived.
inline const uint64_t (*meet(unsigned mask, const char* kind, const uint64_t* words, int n))[WORDS]
{
    Warp& warp = warps[current->thread / LANES];
    const int lane = current->thread % LANES, first = __builtin_ctz(mask);
    const bool part = mask != 0xffffffffu;
    if (!(mask >> lane & 1) || (part && mask != 0xffu << first) || first % 8)
        fail(std::string("a mask this emulation does not know at ") + kind);
    Meeting& meeting = warp.meeting[part][first];
    auto& table = warp.table[part][meeting.generation % 2];
    if (meeting.arrived && (meeting.mask != mask || std::strcmp(meeting.kind, kind)))
        fail(std::string(kind) + " meets " + meeting.kind);
    meeting.mask = mask;
    meeting.kind = kind;
    for (int i = 0; i < n; ++i)
        table[lane][i] = words[i];
    const uint64_t generation = meeting.generation;
    if (++meeting.arrived == __builtin_popcount(mask)) {
        meeting.arrived = 0;
        ++meeting.generation;
    } else {
        wait(&meeting.generation, generation, kind);
    }
    return table;
}

template <class T> uint64_t to_word(T value)
{
    static_assert(sizeof(T) <= 8);
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    return word;
}

template <class T> T from_word(uint64_t word)
{
    T value;
    std::memcpy(&value, &word, sizeof(T));
    return value;
}

template <class T> T shuffle(unsigned mask, const char* kind, T value, int from)
{
    const uint64_t word = to_word(value);
    const auto* table = meet(mask, kind, &word, 1);
    return from_word<T>(table[from & 31][0]);
}

}  // namespace host

#define threadIdx (host::current->index)
#define blockIdx (host::block_index)
#define blockDim (host::block_size)
#define gridDim (host::grid_size)

// A barrier is identified by its source line; threads waiting at different ones are an error.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE())
{
    if (host::at_barrier == 0) {
        host::barrier_file = file;
        host::barrier_line = line;
    } else if (host::barrier_line != line || std::strcmp(host::barrier_file, file)) {
        host::fail("the barrier of line " + std::to_string(line) + " meets that of line " + std::to_string(host::barrier_line));
    }
    const uint64_t seen = host::barriers;
    ++host::at_barrier;
    host::leave_barrier();
    if (host::barriers == seen)
        host::wait(&host::barriers, seen, "__syncthreads");
}

template <class T> T __shfl_sync(unsigned mask, T value, int from) { return host::shuffle(mask, "__shfl_sync", value, from); }

template <class T> T __shfl_xor_sync(unsigned mask, T value, int other)
{
    return host::shuffle(mask, "__shfl_xor_sync", value, (host::current->thread % 32) ^ other);
}

template <class T> T __shfl_up_sync(unsigned mask, T value, int by)
{
    const int lane = host::current->thread % 32;
    return host::shuffle(mask, "__shfl_up_sync", value, lane < by ? lane : lane - by);
}

template <class T> T atomicAdd(T* at, T value)
{
    const T before = *at;
    *at = before + value;
    return before;
}

template <class T> T atomicMin(T* at, T value)
{
    const T before = *at;
    *at = std::min(before, value);
    return before;
}

template <class T> T atomicOr(T* at, T value)
{
    const T before = *at;
    *at = before | value;
    return before;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clzll(long long bits) { return bits ? __builtin_clzll((unsigned long long)bits) : 64; }
inline unsigned __float_as_uint(float value) { return (unsigned)host::to_word(value); }
inline float __uint_as_float(unsigned bits) { return host::from_word<float>(bits); }
inline long long __double_as_longlong(double value) { return (long long)host::to_word(value); }
inline double __longlong_as_double(long long bits) { return host::from_word<double>((uint64_t)bits); }
// Compiled without contraction, so each operation rounds.
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }

// --- the PTX of device.cuh ----------------------------------------------------------------------------------------

inline unsigned short to_half(float value)
{
    const _Float16 half = (_Float16)value;
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

inline float from_half(unsigned short bits)
{
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return (float)half;
}

namespace host {

// Products that tensor cores sum at once: 4, 8 or 16 depending on the generation.
constexpr int SUMMED_AT_ONCE = 4;

// 2 to a power in the normal range of double.
inline double power_of_two(int exponent) { return from_word<double>((uint64_t)(exponent + 1023) << 52); }

inline int exponent_of(double value) { return (int)(to_word(value) >> 52 & 2047) - 1023; }

// c + Σ products, truncated below the 24 bits of the largest addend and of the sum, as hardware may do.
inline float truncated_sum(float c, const double* products)
{
    double rounded = c;
    for (int i = 0; i < 16; ++i)
        rounded += products[i];
    if (!std::isfinite(rounded))
        return (float)rounded;
    for (int first = 0; first < 16; first += SUMMED_AT_ONCE) {
        double largest = std::fabs((double)c);
        for (int i = 0; i < SUMMED_AT_ONCE; ++i)
            largest = std::max(largest, std::fabs(products[first + i]));
        if (largest == 0)
            continue;
        const int place = exponent_of(largest) - 23;
        const double up = power_of_two(-place);
        int64_t sum = (int64_t)(c * up);
        for (int i = 0; i < SUMMED_AT_ONCE; ++i)
            sum += (int64_t)(products[first + i] * up);
        const int longer = std::max(0, 40 - __builtin_clzll((uint64_t)std::abs(sum) | 1));
        c = (float)((double)(sum / (1 << longer)) * power_of_two(place + longer));
    }
    return c;
}

inline double half_of(uint64_t word, int upper) { return from_half((unsigned short)(word >> 16 * upper)); }

}  // namespace host

// PTX's m16n8k16: A is four words a lane (rows g, g + 8; columns 2t, 2t + 8), B two (rows 2t, 2t + 8; column g),
// C four floats (rows g, g, g + 8, g + 8; columns 2t, 2t + 1), with g = lane / 4 and t = lane % 4.
inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned* b)
{
    const uint64_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const auto* table = host::meet(0xffffffffu, "mma", words, 6);
    const int g = host::current->thread % 32 / 4, t = host::current->thread % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        double products[16];
        for (int k = 0; k < 16; ++k) {
            const uint64_t from_a = table[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)];
            const uint64_t from_b = table[column * 4 + k % 8 / 2][4 + k / 8];
            products[k] = host::half_of(from_a, k % 2) * host::half_of(from_b, k % 2);
        }
        c[i] = host::truncated_sum(c[i], products);
    }
}

// PTX's ldmatrix.x4: lane 8m + r gives row r of matrix m; a lane gets word lane % 4 of row lane / 4 of each.
inline void load_matrices(unsigned (&to)[4], const void* row)
{
    if ((uintptr_t)row % 16)
        host::fail("a row of a matrix is not aligned to 16");
    const uint64_t word = (uintptr_t)row;
    const auto* table = host::meet(0xffffffffu, "ldmatrix", &word, 1);
    const int lane = host::current->thread % 32;
    for (int m = 0; m < 4; ++m)
        std::memcpy(&to[m], (const char*)table[8 * m + lane / 4][0] + 4 * (lane % 4), 4);
}

inline void copy16(void* shared, const void* global)
{
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16)
        host::fail("a copy of 16 bytes is not aligned to 16");
    std::memset(shared, 0xFF, 16);
    host::current->copies.push_back({(char*)shared, (const char*)global, host::current->groups});
}

inline void copies_commit() { ++host::current->groups; }

template <int Open> void copies_wait()
{
    host::arrive(Open, [](const host::Fiber::Copy&) {});
}

inline void made_here(unsigned&) {}

inline double* launch_memory() { return (double*)host::launch_memory.data(); }

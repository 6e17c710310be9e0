// Building blocks of the kernels: tensor-core products, asynchronous copies, sums, selection.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

constexpr u32 WHOLE_WARP = 0xffffffffu;
// Threads of every block but those of `gather`.
constexpr int BLOCK = 256;
// Blocks that share a multiprocessor, where its shared memory holds twice 48 KiB; Turing's holds 64 KiB.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int TWO_BLOCKS = 1;
#else
constexpr int TWO_BLOCKS = 2;
#endif

// GPU-only code. Without a CUDA compiler, the same names must be defined before this header.
#ifdef __CUDACC__

__device__ __forceinline__ u16 to_half(float value)
{
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float from_half(u16 bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// c [16, 8] += a [16, 16] · b [16, 8], fp16 in, fp32 out, spread over the warp as in PTX's m16n8k16.
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], const u32* b)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // Turing multiplies eight columns at a time.
    for (int i = 0; i < 2; ++i)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

// Four matrices of 8 × 8 float16 from shared memory. Lane 8m + r gives the address of row r of matrix m; every lane gets two
// neighboring columns of each matrix: row lane / 4, columns 2·(lane % 4) and the next.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const void* row)
{
    const u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// 16 bytes from global to shared memory; visible only after the matching `copies_wait` and a barrier.
__device__ __forceinline__ void copy16(void* shared, const void* global)
{
#if __CUDA_ARCH__ >= 800
    const u32 to = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
    *(uint4*)shared = *(const uint4*)global;
#endif
}

__device__ __forceinline__ void copies_commit()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most the `Open` most recent groups of copies are pending.
template <int Open> __device__ __forceinline__ void copies_wait()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(Open) : "memory");
#endif
}

// The compiler takes the value as new here: what is computed from it stays inside of a loop, where registers are few.
__device__ __forceinline__ void made_here(u32& value) { asm volatile("" : "+r"(value)); }

// Dynamic shared memory, sized at launch.
__device__ __forceinline__ double* launch_memory()
{
    extern __shared__ double memory[];
    return memory;
}

#endif

// Unsigned bits that sort like the values; -0 equals 0.
__device__ __forceinline__ u32 ordered(float value)
{
    const u32 bits = __float_as_uint(value + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(u32 bits)
{
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

__device__ __forceinline__ u64 ordered(double value)
{
    const u64 bits = (u64)__double_as_longlong(value + 0.0);
    return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}

// Scratch of block reductions and selection; one per block, in shared memory. Each of these functions has barriers of its own
// between writing and reading; one more must lie between two calls of `block_sums`, or of `block_range`.
struct Tally {
    u32 bin[256];
    u64 low[BLOCK / 32], high[BLOCK / 32];
    double value[2][BLOCK / 32];
    u32 before, inside, digit;
};

// The sums of up to two values over the block in one fixed order, in place.
template <int Values> __device__ inline void block_sums(Tally& tally, double (&value)[Values])
{
    for (int v = 0; v < Values; ++v) {
        for (int step = 1; step < 32; step *= 2)
            value[v] += __shfl_xor_sync(WHOLE_WARP, value[v], step);
        if (threadIdx.x % 32 == 0)
            tally.value[v][threadIdx.x / 32] = value[v];
    }
    __syncthreads();
    for (int v = 0; v < Values; ++v) {
        value[v] = 0;
        for (int warp = 0; warp < BLOCK / 32; ++warp)
            value[v] += tally.value[v][warp];
    }
}

// The smallest of `low` and the largest of `high` over the block, in place.
__device__ inline void block_range(Tally& tally, u64& low, u64& high)
{
    for (int step = 1; step < 32; step *= 2) {
        const u64 other_low = __shfl_xor_sync(WHOLE_WARP, low, step);
        const u64 other_high = __shfl_xor_sync(WHOLE_WARP, high, step);
        low = other_low < low ? other_low : low;
        high = other_high > high ? other_high : high;
    }
    if (threadIdx.x % 32 == 0) {
        tally.low[threadIdx.x / 32] = low;
        tally.high[threadIdx.x / 32] = high;
    }
    __syncthreads();
    for (int warp = 0; warp < BLOCK / 32; ++warp) {
        low = tally.low[warp] < low ? tally.low[warp] : low;
        high = tally.high[warp] > high ? tally.high[warp] : high;
    }
}

// The `want` smallest keys are those below `key`, and `left` of the `equal` ones at it.
// If left == equal, `key` need not occur: the cut is then all keys not above it.
struct Cut {
    u64 key;
    u32 left, equal;
};

// Finds the bin with the want-th key; called by the first warp.
__device__ inline void find_bin(Tally& tally, u32 want)
{
    const int lane = threadIdx.x;
    u32 own = 0;
    for (int i = 0; i < 8; ++i)
        own += tally.bin[8 * lane + i];
    u32 through = own;
    for (int step = 1; step < 32; step *= 2) {
        const u32 other = __shfl_up_sync(WHOLE_WARP, through, step);
        through += lane >= step ? other : 0;
    }
    u32 before = through - own;
    if (before < want && want <= through) {
        int i = 0;
        while (before + tally.bin[8 * lane + i] < want)
            before += tally.bin[8 * lane + i++];
        tally.before = before;
        tally.inside = tally.bin[8 * lane + i];
        tally.digit = 8 * lane + i;
    }
}

// Cuts the keys of 0 … n-1 for which `in` holds, at least `want` >= 1 of them. Eight bits a pass, from the highest bit in
// which the keys differ, until the pass after which no bin is split.
template <class Key, class In> __device__ Cut cut(Tally& tally, u32 n, u32 want, Key key, In in)
{
    u64 low = ~0ull, high = 0;
    for (u32 i = threadIdx.x; i < n; i += BLOCK)
        if (in(i)) {
            const u64 k = key(i);
            low = k < low ? k : low;
            high = k > high ? k : high;
        }
    block_range(tally, low, high);
    int shift = high == low ? 0 : 64 - __clzll((i64)(high - low)) - 8;
    for (shift = shift < 0 ? 0 : shift;; shift = shift < 8 ? 0 : shift - 8) {
        tally.bin[threadIdx.x] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < n; i += BLOCK)
            if (in(i)) {
                const u64 k = key(i);
                if (k >= low && (k - low) >> shift < 256)
                    atomicAdd(&tally.bin[(k - low) >> shift], 1u);
            }
        __syncthreads();
        if (threadIdx.x < 32)
            find_bin(tally, want);
        __syncthreads();
        low += (u64)tally.digit << shift;
        want -= tally.before;
        const u32 inside = tally.inside;
        const u64 last = (1ull << shift) - 1;
        if (shift == 0 || inside == want)
            return {high - low < last ? high : low + last, want, inside};
    }
}

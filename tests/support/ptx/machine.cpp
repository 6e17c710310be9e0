// Runs translated PTX on the fibers of host_cuda.h: memory with bounds, the race shadow, and counts of basic blocks.
#include "../host_cuda/host_cuda.h"

#include "ptx.h"

#include "race_shadow.h"

#include <map>

namespace {

constexpr size_t ARENA = 64 << 10;
alignas(16) char arena[ARENA] __attribute__((section("host_shared")));
size_t arena_used;
race::Shadow shadow;
const ptx::Kernel* running;
// Allocations by their first address.
std::map<uintptr_t, size_t> allocations;

// Visits to basic blocks: of each thread of the block, the most of any lane of each warp, and sums by kernel.
struct Counts {
    std::vector<uint64_t> threads, warps;
};
std::map<std::string, Counts> counts;
std::vector<ptx::u32> visited;
std::string said;

// A planted fault: the barrier or wait that is left out, and how many groups of copies each wait leaves under way.
std::string faulty_kernel;
int faulty_line, too_lax;

bool left_out(int line) { return line == faulty_line && running->name == faulty_kernel; }

int64_t block_number() { return (int64_t)host::block_index.y * host::grid_size.x + host::block_index.x; }

race::Access access(int line, bool atomic)
{
    return {block_number() * race::PER_BLOCK + host::current->thread, host::barriers, line, atomic};
}

char* checked(char* at, bool inside, int bytes, int line)
{
    if ((uintptr_t)at % bytes)
        host::fail("an access of " + std::to_string(bytes) + " bytes is not aligned at line " + std::to_string(line));
    if (!inside)
        host::fail("an access is outside of what was allocated at line " + std::to_string(line));
    return at;
}

bool allocated(uintptr_t from, int bytes)
{
    static uintptr_t first = 0, last = 0;   // the allocation of the access before
    if (from >= first && from + bytes <= last && allocations.count(first))
        return true;
    auto after = allocations.upper_bound(from);
    if (after == allocations.begin())
        return false;
    --after;
    first = after->first;
    last = first + after->second;
    return from + bytes <= last;
}

// The last thread of a block adds the block's visits.
void count_block()
{
    const size_t blocks = running->basic_blocks;
    Counts& sum = counts[running->name];
    sum.threads.resize(blocks);
    sum.warps.resize(blocks);
    const size_t threads = host::fibers.size();
    for (size_t b = 0; b < blocks; ++b)
        for (size_t first = 0; first < threads; first += host::LANES) {
            ptx::u32 most = 0;
            for (size_t t = first; t < std::min(threads, first + host::LANES); ++t) {
                sum.threads[b] += visited[t * blocks + b];
                most = std::max(most, visited[t * blocks + b]);
            }
            sum.warps[b] += most;
        }
    std::fill(visited.begin(), visited.end(), 0);
}

void run_thread(const char* parameters)
{
    running->run(parameters);
    if (host::alive == 1) {
        count_block();
        shadow.begin_block();
    }
}

}  // namespace

namespace ptx {

Position position()
{
    return {host::current->index.x, host::block_index.x, host::block_index.y,
            host::block_size.x,     host::grid_size.x,   host::grid_size.y};
}

u32* visits() { return &visited[(size_t)host::current->thread * running->basic_blocks]; }

char* global(u64 address, int bytes, Access kind, int line)
{
    char* at = checked((char*)address, allocated(address, bytes), bytes, line);
    if (shadow.watching)
        shadow.touch(false, address, bytes, kind != READ, access(line, kind == UPDATE));
    return at;
}

char* shared(u64 offset, int bytes, Access kind, int line)
{
    char* at = checked(arena + offset, offset + bytes <= arena_used, bytes, line);
    if (shadow.watching)
        shadow.touch(true, offset, bytes, kind != READ, access(line, kind == UPDATE));
    return at;
}

void barrier(const char* kernel, int line)
{
    if (!left_out(line))
        __syncthreads(kernel, line);
}

u32 shuffle(const char* mode, u32 value, u32 lane, u32 clamp, u32 mask)
{
    const bool up = !std::strcmp(mode, "up");
    if (clamp != (up ? 0u : 31u))
        host::fail("a shuffle within part of a warp");
    const int own = host::current->thread % host::LANES;
    if (up)
        return host::shuffle(mask, "shfl.up", value, own < (int)lane ? own : own - (int)lane);
    return !std::strcmp(mode, "bfly") ? host::shuffle(mask, "shfl.bfly", value, own ^ (int)lane)
                                      : host::shuffle(mask, "shfl.idx", value, (int)lane);
}

void multiply(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { ::multiply(c, a, b); }

void load_matrices(u32 (&to)[4], u64 offset, int line) { ::load_matrices(to, shared(offset, 16, READ, line)); }

void copy16(u64 offset, u64 address, int line)
{
    char* const to = shared(offset, 16, WRITE, line);
    ::copy16(to, global(address, 16, READ, line));
    if (shadow.watching)
        shadow.set_copying(offset, 16, access(line, false).thread);
}

void copies_commit() { ::copies_commit(); }

void copies_wait(int open, int line)
{
    if (left_out(line))
        return;
    host::arrive(open + too_lax, [](const host::Fiber::Copy& copy) {
        if (!shadow.watching)
            return;
        shadow.set_copying((u64)(copy.to - arena), 16, race::NOBODY);
        shadow.touch(true, (u64)(copy.to - arena), 16, true, access(0, false));
        shadow.touch(false, (u64)copy.from, 16, false, access(0, false));
    });
}

}  // namespace ptx

extern "C" {

// Returns an error message, or null.
const char* host_cuda_launch(const char* name, const unsigned* grid, const unsigned* block, unsigned dynamic,
                             const void* parameters, int order)
{
    running = nullptr;
    for (int i = 0; i < ptx::KERNEL_COUNT; ++i)
        if (!std::strcmp(ptx::KERNELS[i].name, name))
            running = &ptx::KERNELS[i];
    if (!running) {
        said = std::string("no kernel is called ") + name;
        return said.c_str();
    }
    host::order = order;
    arena_used = (running->shared + 15) / 16 * 16 + dynamic;
    visited.assign((size_t)block[0] * running->basic_blocks, 0);
    shadow.begin_launch();
    shadow.begin_block();
    said = arena_used > ARENA ? "too much shared memory"
                              : host::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, 0,
                                             [parameters] { run_thread((const char*)parameters); });
    return said.empty() ? nullptr : said.c_str();
}

void* host_cuda_allocate(size_t bytes)
{
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes) != 0)
        return nullptr;
    std::memset(memory, 0xFF, bytes);
    allocations[(uintptr_t)memory] = bytes;
    return memory;
}

void host_cuda_free(void* memory)
{
    allocations.erase((uintptr_t)memory);
    std::free(memory);
}

void host_cuda_copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

// Sizes of the arguments are the C++ emulation's affair.
size_t host_cuda_size(int) { return 0; }
size_t host_cuda_offset(int) { return 0; }

void ptx_watch(int on)
{
    shadow.watching = on;
    shadow.conflicts.clear();
}

// From now on the barrier or wait at a line of a kernel does nothing, and each wait leaves `lax` more groups under way.
void ptx_plant(const char* kernel, int line, int lax)
{
    faulty_kernel = kernel;
    faulty_line = line;
    too_lax = lax;
}

// Conflicts since `ptx_watch`, a line each.
const char* ptx_conflicts()
{
    said.clear();
    for (const std::string& conflict : shadow.conflicts)
        said += conflict + "\n";
    return said.c_str();
}

// Visits to a kernel's basic blocks since the library was loaded, by threads and by warps.
void ptx_visits(const char* kernel, uint64_t* threads, uint64_t* warps)
{
    const Counts& sum = counts[kernel];
    std::copy(sum.threads.begin(), sum.threads.end(), threads);
    std::copy(sum.warps.begin(), sum.warps.end(), warps);
}
}

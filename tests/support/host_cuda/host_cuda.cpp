// The kernels as a shared library: launches by name, heap memory for sanitizers, and the layout of the arguments.
#include "host_cuda.h"

#include "../../../kernels/cuda/src/retrieve.cu"

#include <cstddef>
#include <map>

namespace {

using Kernel = std::function<void(const void*)>;

template <class Argument> Kernel passing(void (*kernel)(Argument))
{
    return [kernel](const void* argument) { kernel(*(const Argument*)argument); };
}

const std::map<std::string, Kernel> KERNELS = {
    {"place", passing(place)},
    {"product_all", passing(product_all)},
    {"product_within", passing(product_within)},
    {"city_block_all", passing(city_block_all)},
    {"city_block_within", passing(city_block_within)},
    {"set_limit", passing(set_limit)},
    {"choose", passing(choose)},
    {"choose_exactly", passing(choose_exactly)},
    {"weigh", passing(weigh)},
    {"gather", passing(gather)},
    {"multiply_dense", passing(multiply_dense)},
};

std::string last_failure;

}  // namespace

extern "C" {

// Returns an error message, or null.
const char* host_cuda_launch(const char* name, const unsigned* grid, const unsigned* block, unsigned shared, const void* argument,
                             int order)
{
    const auto kernel = KERNELS.find(name);
    if (kernel == KERNELS.end()) {
        last_failure = std::string("no kernel is called ") + name;
    } else {
        host::order = order;
        last_failure = host::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared,
                                    [&] { kernel->second(argument); });
    }
    return last_failure.empty() ? nullptr : last_failure.c_str();
}

void* host_cuda_allocate(size_t bytes)
{
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes) != 0)
        return nullptr;
    std::memset(memory, 0xFF, bytes);
    return memory;
}

void host_cuda_free(void* memory) { std::free(memory); }

void host_cuda_copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

size_t host_cuda_size(int which) { return which == 0 ? sizeof(Placing) : sizeof(Job); }

// Offset of the last checked field: it moves if any field before it changes size.
size_t host_cuda_offset(int which)
{
    return which == 0 ? offsetof(Placing, rank) : offsetof(Job, half_expression);
}
}

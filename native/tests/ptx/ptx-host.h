#pragma once

// Between the runtime and a translated kernel, which is a library of its own.

#include <stddef.h>
#include <stdint.h>

// what a kernel asks of the runtime
struct ptx_host {
    // the allocation that has the address; false if there is none
    bool (*find_memory)(uint64_t address, uint64_t & begin, uint64_t & end);
    // says what is wrong and ends the process, as a device fault would
    void (*fail)(const char * kernel, const char * what, uint64_t address, uint64_t size);
    // the shared memory of a block, below 4 GiB: shared addresses have 32 bits
    char * (*shared_memory)(size_t size);
};

struct ptx_launch {
    unsigned grid[3];
    unsigned block[3];
    const char * params; // as the PTX lays them out
    size_t dynamic_smem;
};

// exported by the library as "ptx_kernel_table"
struct ptx_kernel {
    const char * name;
    void (*run)(const ptx_launch & launch, const ptx_host & host);
    int n_params;
    const int * param_offsets;
    const int * param_sizes;
    int params_size;
};

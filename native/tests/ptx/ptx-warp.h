#pragma once

// Runs a kernel block by block and warp by warp. A kernel is cut into basic blocks; every lane has the number of its
// next one, and the lanes at the lowest number go first, so that a warp that parted comes together again.

#include "ptx-host.h"
#include "ptx-lanes.h"

#include <stdlib.h>
#include <vector>

struct ptx_range {
    uint64_t begin;
    uint64_t end;
};

// the memory that a kernel may touch; everything else is a fault, and so is an access that is not aligned to its size
struct ptx_memory {
    const char * kernel;
    const ptx_host * host;
    ptx_range shared;
    ptx_range local;
    ptx_range params;
    ptx_range last; // allocation
    std::vector<ptx_range> constants;

    static bool in(const ptx_range & range, uint64_t address, uint64_t size) {
        return address >= range.begin && address + size <= range.end;
    }

    bool knows(uint64_t address, uint64_t size) {
        if (in(last, address, size) || in(shared, address, size) || in(params, address, size) ||
            in(local, address, size)) {
            return true;
        }
        for (const auto & range : constants) {
            if (in(range, address, size)) {
                return true;
            }
        }
        return host->find_memory(address, last.begin, last.end) && in(last, address, size);
    }

    __attribute__((noinline)) void check(uint64_t address, uint64_t size, uint64_t align) {
        if (address % align != 0) {
            host->fail(kernel, "access that is not aligned", address, align);
        }
        if (size > 0 && !knows(address, size)) {
            host->fail(kernel, "access to memory that is not there", address, size);
        }
    }
};

enum ptx_stop { PTX_AT_BARRIER = -1, PTX_ENDED = -2 };

struct ptx_warp {
    ptx_memory * memory;
    const ptx_launch * launch;
    int number; // in its block
    unsigned ctaid[3];
    u32v tid[3];
    char * local; // [32][local_size]
    size_t local_size;
    uint64_t params;
    uint64_t smem;

    uint32_t alive;
    uint32_t at_barrier; // of the block
    uint32_t at_sync;    // of the warp
    uint32_t lanes;      // that execute now, and the same as a mask
    u32v mask;
    int common;   // next basic block of all lanes; -1 where they have parted:
    int next[32]; // of each

    void choose(uint32_t bits) {
        lanes = bits;
        mask  = from_bits(bits);
    }

    void part() {
        if (common >= 0) {
            for (int & block : next) {
                block = common;
            }
            common = -1;
        }
    }

    // the basic block to execute, or a ptx_stop
    int pick() {
        for (;;) {
            const uint32_t ready = alive & ~at_barrier & ~at_sync;
            if (ready == 0) {
                if (at_sync & alive) {
                    at_sync = 0; // all that still run have arrived
                    continue;
                }
                return alive ? PTX_AT_BARRIER : PTX_ENDED;
            }
            if (common >= 0 && ready == alive) {
                if (lanes != alive) {
                    choose(alive);
                }
                return common;
            }
            part();
            int first       = next[__builtin_ctz(ready)];
            uint32_t chosen = 0;
            for (uint32_t left = ready; left; left &= left - 1) {
                const int l  = __builtin_ctz(left);
                chosen       = next[l] < first ? 0 : chosen;
                first        = next[l] < first ? next[l] : first;
                chosen      |= next[l] == first ? 1u << l : 0;
            }
            if (chosen != lanes) {
                choose(chosen);
            }
            return first;
        }
    }

    void go(uint32_t who, int block) {
        if (who == alive) {
            common = block;
            return;
        }
        part();
        for (uint32_t left = who; left; left &= left - 1) {
            next[__builtin_ctz(left)] = block;
        }
    }

    void branch(u32v condition, int taken, int not_taken) {
        const uint32_t yes = to_bits(condition) & lanes;
        if (yes != lanes) {
            go(lanes & ~yes, not_taken);
        }
        if (yes) {
            go(yes, taken);
        }
    }

    // address of each lane's own
    u64v local_memory() const { return (uint64_t) local + convert(lane_numbers(), u64v) * local_size; }

    void fail(const char * what, uint64_t address, uint64_t size) const {
        memory->host->fail(memory->kernel, what, address, size);
    }

    // for instructions that need the named lanes together
    void together(uint32_t wanted) const {
        if ((wanted & alive) != lanes) {
            fail("instruction for a whole warp by a part of it", lanes, wanted);
        }
    }
};

// what the lanes that execute do at their addresses: a vector plus an offset
template <typename F>
PTX_INLINE void access(const ptx_warp & w, u64v address, int64_t offset, uint64_t size, uint32_t lanes, F f) {
    for (uint32_t left = lanes; left; left &= left - 1) {
        const int l      = __builtin_ctz(left);
        const uint64_t p = address[l] + offset;
        w.memory->check(p, size, size);
        f(l, p);
    }
}

template <typename T, typename V, int n>
PTX_CALL void load(const ptx_warp & w, V (&res)[n], u64v address, int64_t offset, uint32_t lanes) {
    access(w, address, offset, n * sizeof(T), lanes, [&](int l, uint64_t p) {
        for (int i = 0; i < n; ++i) {
            res[i][l] = ((const T *) p)[i];
        }
    });
}

template <typename T, typename V, int n>
PTX_CALL void store(const ptx_warp & w, u64v address, int64_t offset, const V (&x)[n], uint32_t lanes) {
    access(w, address, offset, n * sizeof(T), lanes, [&](int l, uint64_t p) {
        for (int i = 0; i < n; ++i) {
            ((T *) p)[i] = (T) x[i][l];
        }
    });
}

template <typename T, typename V>
PTX_CALL V atomic_add(const ptx_warp & w, u64v address, int64_t offset, V x, uint32_t lanes) {
    V res = {};
    access(w, address, offset, sizeof(T), lanes, [&](int l, uint64_t p) {
        res[l]    = *(const T *) p;
        *(T *) p += (T) x[l];
    });
    return res;
}

// arrives at once; have: bytes that are copied, the rest of the size becomes zeros
PTX_CALL void copy_async(const ptx_warp & w, u64v to, int64_t to_offset, u64v from, int64_t from_offset, int size,
                         u32v have, uint32_t lanes) {
    for (uint32_t left = lanes; left; left &= left - 1) {
        const int l      = __builtin_ctz(left);
        const uint64_t p = to[l] + to_offset;
        const uint64_t q = from[l] + from_offset;
        const uint32_t n = have[l] < (uint32_t) size ? have[l] : size;
        w.memory->check(p, size, size);
        w.memory->check(q, n, size);
        memcpy((void *) p, (const void *) q, n);
        memset((char *) p + n, 0, size - n);
    }
}

template <typename state>
void ptx_run(void (*const * blocks)(ptx_warp &, state &), ptx_memory & memory, const ptx_launch & launch,
             size_t smem_size, size_t local_size) {
    const int n_threads = launch.block[0] * launch.block[1] * launch.block[2];
    const int n_warps   = (n_threads + 31) / 32;

    char * smem  = memory.host->shared_memory(smem_size);
    char * local = (char *) malloc(32 * local_size * n_warps + 1);

    memory.shared = { (uint64_t) smem, (uint64_t) smem + smem_size };
    memory.local  = { (uint64_t) local, (uint64_t) local + 32 * local_size * n_warps };

    std::vector<ptx_warp> warps(n_warps);
    state * states = (state *) aligned_alloc(256, (n_warps * sizeof(state) + 255) / 256 * 256);

    const long n_blocks = (long) launch.grid[0] * launch.grid[1] * launch.grid[2];
    for (long block = 0; block < n_blocks; ++block) {
        // what nobody wrote is NaN, or an index out of all bounds
        memset(smem, 0xFF, smem_size);
        memset((void *) states, 0xFF, n_warps * sizeof(state));
        for (int i = 0; i < n_warps; ++i) {
            ptx_warp & w  = warps[i];
            const int n   = n_threads - 32 * i;
            w             = ptx_warp();
            w.memory      = &memory;
            w.launch      = &launch;
            w.number      = i;
            w.ctaid[0]    = block % launch.grid[0];
            w.ctaid[1]    = block / launch.grid[0] % launch.grid[1];
            w.ctaid[2]    = block / launch.grid[0] / launch.grid[1];
            w.local       = local + 32 * local_size * i;
            w.local_size  = local_size;
            w.params      = (uint64_t) launch.params;
            w.smem        = (uint64_t) smem;
            const u32v at = all32(32 * i) + lane_numbers();
            w.tid[0]      = at % launch.block[0];
            w.tid[1]      = at / launch.block[0] % launch.block[1];
            w.tid[2]      = at / launch.block[0] / launch.block[1];
            w.alive       = n >= 32 ? ~0u : (1u << n) - 1;
        }
        for (bool waiting = true; waiting;) {
            waiting = false;
            for (int i = 0; i < n_warps; ++i) {
                int at;
                while ((at = warps[i].pick()) >= 0) {
                    blocks[at](warps[i], states[i]);
                }
                waiting |= at == PTX_AT_BARRIER;
            }
            for (auto & w : warps) {
                w.at_barrier = 0;
            }
        }
    }
    free(states);
    free(local);
}

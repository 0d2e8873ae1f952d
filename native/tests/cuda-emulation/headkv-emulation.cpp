// Threads as fibers, barriers, shared memory and asynchronous copies; the arithmetic is in headkv-emulation-math.cpp.

#include "headkv-emulation.h"
#include "headkv-emulation-warp.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#include <csetjmp>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#define HEADKV_EMU_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HEADKV_EMU_ASAN
#endif
#endif

#ifdef HEADKV_EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx;
dim3 blockIdx;
dim3 blockDim;
dim3 gridDim;

headkv_emu_options headkv_emu;

static constexpr size_t smem_max   = 128 * 1024;
static constexpr size_t stack_size = 256 * 1024;

extern char headkv_smem[];
alignas(128) char headkv_smem[smem_max];

namespace {

struct copy {
    void * dst;
    const void * src;
    int n;
    int size;
};

struct warp {
    int n_arrived  = 0;
    unsigned round = 0; // counts what the warp has done together
    headkv_emu_op op;
    void * args[32];
};

struct fiber {
    ucontext_t ctx;
    jmp_buf jmp;
    bool started;
    bool done;
    unsigned round_warp; // waits until the warp's round is another one
    unsigned round_block;
    bool waits_warp;
    bool waits_block;
    std::deque<std::vector<copy>> groups; // committed
    std::vector<copy> open;
    std::vector<char> stack;
};

ucontext_t main_ctx;
jmp_buf main_jmp;

std::vector<fiber> fibers;
std::vector<warp> warps;
int n_arrived_block;
unsigned round_block;
int current;
size_t smem_size;

void (*body)(void *);
void * body_arg;

#ifdef HEADKV_EMU_ASAN
void * main_fake;
const void * main_stack;
size_t main_stack_size;
#endif

[[noreturn]] void fail(const char * what) {
    fprintf(stderr, "FAIL %s: block %u %u thread %d %s\n", headkv_emu.name, blockIdx.x, blockIdx.y, current, what);
    abort();
}

// setjmp() does not save the signal mask, which would be two system calls; the address sanitizer has to be told
void to_main(bool last) {
    fiber & f = fibers[current];
#ifdef HEADKV_EMU_ASAN
    void * fake = nullptr;
    __sanitizer_start_switch_fiber(last ? nullptr : &fake, main_stack, main_stack_size);
    swapcontext(&f.ctx, &main_ctx);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void) last;
    if (_setjmp(f.jmp) == 0) {
        _longjmp(main_jmp, 1);
    }
#endif
}

void fiber_main() {
#ifdef HEADKV_EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
#endif
    body(body_arg);
    fiber & f = fibers[current];
    for (const auto & g : f.groups) {
        for (const copy & c : g) {
            if (c.n > 0) {
                fail("ends with copies on their way");
            }
        }
    }
    f.done = true;
    to_main(true);
}

void run(int i) {
    current   = i;
    threadIdx = dim3(i);

    fiber & f = fibers[i];
#ifdef HEADKV_EMU_ASAN
    __sanitizer_start_switch_fiber(&main_fake, f.stack.data(), f.stack.size());
    swapcontext(&main_ctx, &f.ctx);
    __sanitizer_finish_switch_fiber(main_fake, nullptr, nullptr);
#else
    if (_setjmp(main_jmp) == 0) {
        if (!f.started) {
            f.started = true;
            setcontext(&f.ctx);
        }
        _longjmp(f.jmp, 1);
    }
#endif
}

bool runnable(int i) {
    const fiber & f = fibers[i];
    return !f.done && !(f.waits_warp && warps[i / 32].round == f.round_warp) &&
           !(f.waits_block && round_block == f.round_block);
}

void run_block() {
    const int n = (int) fibers.size();

    memset(headkv_smem, 0xFF, smem_max);
    n_arrived_block = 0;
    for (auto & w : warps) {
        w.n_arrived = 0;
    }
    for (auto & f : fibers) {
        f.started    = false;
        f.done       = false;
        f.waits_warp = f.waits_block = false;
        f.groups.clear();
        f.open.clear();
        getcontext(&f.ctx);
        f.ctx.uc_stack.ss_sp   = f.stack.data();
        f.ctx.uc_stack.ss_size = f.stack.size();
        f.ctx.uc_link          = nullptr;
        makecontext(&f.ctx, fiber_main, 0);
    }

    for (int n_done = 0; n_done < n;) {
        bool progress = false;
        for (int i = 0; i < n; ++i) {
            const int at = headkv_emu.reverse ? n - 1 - i : i;
            if (runnable(at)) {
                run(at);
                progress  = true;
                n_done   += fibers[at].done;
            }
        }
        if (!progress) {
            fail("waits for threads that never come");
        }
    }

    for (size_t i = smem_size; i < smem_max; ++i) {
        if (headkv_smem[i] != (char) 0xFF) {
            fail("wrote behind its shared memory");
        }
    }
}

void apply(const std::vector<copy> & group) {
    for (const copy & c : group) {
        memcpy(c.dst, c.src, c.n);
        memset((char *) c.dst + c.n, 0, c.size - c.n);
    }
}

} // namespace

void headkv_emu_launch(dim3 grid, int n_threads, size_t smem, void (*fn)(void *), void * arg) {
    gridDim   = grid;
    blockDim  = dim3(n_threads);
    body      = fn;
    body_arg  = arg;
    smem_size = smem;
    if (n_threads % 32 != 0 || smem > smem_max) {
        fail("cannot be launched");
    }

    warps.assign(n_threads / 32, warp());
    fibers.resize(n_threads);
    for (auto & f : fibers) {
        f.stack.resize(stack_size);
    }

    const unsigned n_blocks = grid.x * grid.y;
    for (unsigned i = 0; i < n_blocks; ++i) {
        const unsigned at = headkv_emu.reverse ? n_blocks - 1 - i : i;
        blockIdx          = dim3(at % grid.x, at / grid.x);
        run_block();
    }
}

void headkv_emu_together(headkv_emu_op op, void * arg) {
    fiber & f = fibers[current];
    warp & w  = warps[current / 32];

    if (w.n_arrived > 0 && w.op != op) {
        fail("the lanes of its warp do different things");
    }
    w.op                 = op;
    w.args[current % 32] = arg;
    if (++w.n_arrived == 32) {
        if (op) {
            op(w.args);
        }
        w.n_arrived = 0;
        w.round++;
        return;
    }
    f.waits_warp = true;
    f.round_warp = w.round;
    to_main(false);
    f.waits_warp = false;
}

void headkv_sync_warp() {
    headkv_emu_together(nullptr, nullptr);
}

void headkv_sync_block() {
    fiber & f = fibers[current];
    if (++n_arrived_block == (int) fibers.size()) {
        n_arrived_block = 0;
        round_block++;
        return;
    }
    f.waits_block = true;
    f.round_block = round_block;
    to_main(false);
    f.waits_block = false;
}

const char * headkv_emu_shared(const void * p, size_t size, size_t align) {
    const char * c = (const char *) p;
    if (c < headkv_smem || c + size > headkv_smem + smem_size) {
        fail("reads or writes outside its shared memory");
    }
    if ((uintptr_t) c % align != 0) {
        fail("reads or writes at an address that is not aligned");
    }
    return c;
}

void headkv_emu_cp_async(void * dst, const void * src, int n, int size) {
    headkv_emu_shared(dst, size, size);
    if ((uintptr_t) src % size != 0 || n < 0 || n > size) {
        fail("copies from an address that is not aligned");
    }
    bool found = false;
    for (int i = 0; i < 8; i += 2) {
        const char * begin = (const char *) headkv_emu.ranges[i];
        const char * end   = (const char *) headkv_emu.ranges[i + 1];
        found              = found || ((const char *) src >= begin && (const char *) src + n <= end);
    }
    if (!found) {
        fail("copies from outside the tensors");
    }
    const copy c = { dst, src, n, size };
    if (headkv_emu.copy_early) {
        apply({ c });
    } else {
        fibers[current].open.push_back(c);
    }
}

void headkv_cp_async_commit() {
    fiber & f = fibers[current];
    f.groups.push_back(std::move(f.open));
    f.open.clear();
}

void headkv_emu_cp_async_wait(int n) {
    fiber & f = fibers[current];
    while ((int) f.groups.size() > n) {
        apply(f.groups.front());
        f.groups.pop_front();
    }
}

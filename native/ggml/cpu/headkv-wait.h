#pragma once

// Waiting at a barrier of ggml's threads.
//
// ggml spins until the last thread arrives. That is the quickest way while each thread has a CPU of its own; where
// others need the CPUs as well, or a container may use half of one, the thread that all wait for cannot run because
// they spin. So a thread spins for some microseconds, and sleeps then.

#include <stdatomic.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#ifndef HEADKV_WAIT_SPINS
#define HEADKV_WAIT_SPINS 2000
#endif

// Threads that sleep, of all pools. Whoever changes a value looks here first: mostly nobody does, and a call into the
// kernel is spared. A thread counts itself before the kernel compares the value, so it is seen or sees the change.
static atomic_int headkv_sleeping;

// until *value is not `old` any more; relax: one turn of a spinning thread
static inline void headkv_wait(atomic_int * value, int old, void (*relax)(void)) {
    for (int i = 0; atomic_load_explicit(value, memory_order_relaxed) == old; ++i) {
        if (i < HEADKV_WAIT_SPINS) {
            relax();
            continue;
        }
#if defined(__linux__)
        atomic_fetch_add(&headkv_sleeping, 1);
        syscall(SYS_futex, (int *) value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0); // returns at once if it has changed
        atomic_fetch_sub(&headkv_sleeping, 1);
#else
        sched_yield();
#endif
    }
}

// wake all that wait for a value that has just been changed
static inline void headkv_wake(atomic_int * value) {
#if defined(__linux__)
    if (atomic_load(&headkv_sleeping) > 0) {
        syscall(SYS_futex, (int *) value, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
    }
#else
    (void) value;
#endif
}

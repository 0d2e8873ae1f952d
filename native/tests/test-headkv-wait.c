// A barrier made of headkv_wait() and headkv_wake(), as ggml's is, whose threads sleep at once: none is left asleep,
// and none goes on before all have arrived.

#define HEADKV_WAIT_SPINS 0

#include "headkv-wait.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { n_threads = 4, n_rounds = 20000 };

static atomic_int n_arrived, n_passed, n_early;
static atomic_int rounds[n_threads];

static void relax(void) {}

static void barrier(void) {
    const int passed = atomic_load(&n_passed);
    if (atomic_fetch_add(&n_arrived, 1) == n_threads - 1) {
        atomic_store(&n_arrived, 0);
        atomic_fetch_add(&n_passed, 1);
        headkv_wake(&n_passed);
        return;
    }
    headkv_wait(&n_passed, passed, relax);
}

static void * run(void * arg) {
    const int self = (int) (size_t) arg;
    for (int round = 1; round <= n_rounds; ++round) {
        atomic_store(&rounds[self], round);
        barrier();
        for (int i = 0; i < n_threads; ++i) {
            if (atomic_load(&rounds[i]) < round) {
                atomic_fetch_add(&n_early, 1);
            }
        }
    }
    return NULL;
}

int main(void) {
    pthread_t threads[n_threads];
    for (size_t i = 0; i < n_threads; ++i) {
        if (pthread_create(&threads[i], NULL, run, (void *) i) != 0) {
            return EXIT_FAILURE;
        }
    }
    for (int i = 0; i < n_threads; ++i) {
        pthread_join(threads[i], NULL);
    }
    printf("%d rounds of %d threads, %d went on too early\n", n_rounds, n_threads, atomic_load(&n_early));
    return atomic_load(&n_early) > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

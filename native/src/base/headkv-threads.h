#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// f(i) for i = 0 .. n - 1, each once, on up to n_threads threads of which this one is one. The calls must not depend
// on each other. Throws what a call threw first; the calls that had not begun by then are not made.
template <typename F>
void headkv_for_each(uint32_t n, uint32_t n_threads, F && f) {
    std::atomic<uint32_t> next = 0;
    std::exception_ptr error;
    std::mutex mutex;

    const auto work = [&]() {
        for (uint32_t i = next++; i < n; i = next++) {
            try {
                f(i);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex);
                error = error ? error : std::current_exception();
                next  = n;
            }
        }
    };

    std::vector<std::thread> threads;
    const uint32_t n_more = std::min(n_threads, n) > 1 ? std::min(n_threads, n) - 1 : 0;
    threads.reserve(n_more);
    try {
        while (threads.size() < n_more) {
            threads.emplace_back(work);
        }
    } catch (const std::system_error &) {
        // those that could be had do it
    } catch (const std::bad_alloc &) {}

    work();
    for (auto & t : threads) {
        t.join();
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

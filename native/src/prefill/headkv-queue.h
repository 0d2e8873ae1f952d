#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

// Jobs that are done one after the other: at once by whoever adds them, or by a thread of their own, beside what is
// done next. After one has failed none is done, and what it threw comes out of the next call.
class headkv_queue {
public:
    // for tests: rows are moved beside what is computed also where all of it is the CPU's
    static inline bool always_beside = false;

    // throws headkv_error if there is no thread to be had
    explicit headkv_queue(bool beside);
    ~headkv_queue(); // waits for the job that runs; what comes after it is dropped

    headkv_queue(const headkv_queue &)             = delete;
    headkv_queue & operator=(const headkv_queue &) = delete;

    // returns how many jobs were added: this one's number
    uint64_t add(std::function<void()> job);

    void wait(uint64_t number); // until that job is done
    void wait() { wait(n_added); }

private:
    void work();

    uint64_t n_added = 0;

    std::mutex mutex; // of all below
    std::condition_variable changed;
    std::deque<std::function<void()>> jobs;
    uint64_t n_done = 0;
    bool ended      = false;
    std::exception_ptr failure;

    std::thread thread;
};

#include "prefill/headkv-queue.h"

#include "base/headkv-error.h"

#include <system_error>
#include <utility>

headkv_queue::headkv_queue(bool beside) {
    if (!beside) {
        return;
    }
    try {
        thread = std::thread([this]() { work(); });
    } catch (const std::system_error &) {
        throw headkv_error(HEADKV_ERR_MEMORY, "no thread can be made to move rows");
    }
}

headkv_queue::~headkv_queue() {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        ended = true;
    }
    changed.notify_all();
    if (thread.joinable()) {
        thread.join();
    }
}

uint64_t headkv_queue::add(std::function<void()> job) {
    if (!thread.joinable()) {
        job();
        return ++n_added;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        if (failure) {
            std::rethrow_exception(failure);
        }
        jobs.push_back(std::move(job));
    }
    changed.notify_all();
    return ++n_added;
}

void headkv_queue::wait(uint64_t number) {
    if (!thread.joinable()) {
        return;
    }
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&]() { return failure || n_done >= number; });
    if (failure) {
        std::rethrow_exception(failure);
    }
}

void headkv_queue::work() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
        changed.wait(lock, [&]() { return ended || !jobs.empty(); });
        if (ended) {
            return;
        }
        auto job = std::move(jobs.front());
        jobs.pop_front();

        lock.unlock();
        std::exception_ptr thrown;
        try {
            job();
        } catch (...) {
            thrown = std::current_exception();
        }
        lock.lock();

        n_done++;
        if (thrown) {
            failure = thrown;
            jobs.clear();
        }
        changed.notify_all();
        if (failure) {
            return;
        }
    }
}

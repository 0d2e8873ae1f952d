#pragma once

#include <atomic>

// Whether a context's decode is to end, as any thread may say: what its abort callback looks at.
struct headkv_canceller {
    std::atomic<bool> cancelled = false;

    // what is computed now cannot be taken back, and is not long
    std::atomic<bool> must_finish = false;

    static bool poll(void * data) {
        const auto * self = static_cast<const headkv_canceller *>(data);
        return self->cancelled.load(std::memory_order_relaxed) && !self->must_finish.load(std::memory_order_relaxed);
    }
};

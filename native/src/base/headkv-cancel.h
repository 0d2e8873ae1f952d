#pragma once

#include "base/headkv-error.h"
#include "llama-impl.h"

#include <atomic>

// Whether a context's decode is to end, as any thread may say: what its abort callback looks at.
struct headkv_canceller {
    std::atomic<bool> cancelled = false;

    // what is computed now cannot be taken back, and is not long
    std::atomic<bool> must_finish = false;

    // a callback of the call that computes runs: the context is in the middle of something
    std::atomic<bool> calls_back = false;

    void require_not_called_back() const {
        if (calls_back) {
            throw headkv_error(HEADKV_ERR_STATE,
                               "the context cannot be changed in a callback of the call that computes");
        }
    }

    // of what callers of llama.h ask for
    bool refuses(const char * asked) const {
        if (calls_back) {
            LLAMA_LOG_ERROR("%s: not in a callback of the call that computes\n", asked);
        }
        return calls_back;
    }

    static bool poll(void * data) {
        const auto * self = static_cast<const headkv_canceller *>(data);
        return self->cancelled.load(std::memory_order_relaxed) && !self->must_finish.load(std::memory_order_relaxed);
    }
};

// run f(), which calls back; it may throw
template <typename F>
void headkv_call_back(headkv_canceller & canceller, F && f) {
    struct calling {
        std::atomic<bool> & on;

        explicit calling(std::atomic<bool> & on) : on(on) { on = true; }

        ~calling() { on = false; }
    };

    const calling now(canceller.calls_back);
    f();
}

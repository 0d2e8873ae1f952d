#include "headkv.h"

#include "ggml.h"

#include <cstdio>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

static thread_local bool refuses = false;
static std::mutex mutex;
static int n_refusing               = 0; // threads
static ggml_abort_callback_t before = nullptr;

// the process ends when this returns; llama.cpp catches what is thrown where it makes models and contexts
static void on_abort(const char * message) {
    if (refuses) {
        const char * file = strrchr(message, '/');
        throw std::runtime_error(std::string("what the metadata or the settings say cannot be: ") +
                                 (file ? file + 1 : message));
    }
    if (before) {
        before(message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

int32_t headkv_begin_refusing(int32_t on) {
    std::lock_guard<std::mutex> lock(mutex);
    if (refuses != (on != 0)) {
        refuses = on != 0;
        if (on && n_refusing++ == 0) {
            before = ggml_set_abort_callback(on_abort);
        } else if (!on && --n_refusing == 0) {
            ggml_set_abort_callback(before);
        }
    }
    return HEADKV_OK;
}

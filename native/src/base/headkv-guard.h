#pragma once

#include "base/headkv-error.h"
#include "llama-impl.h"

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

// What every function of the C API does with exceptions and arguments.

// run f(); any exception becomes a code, and its text this thread's last error
template <typename F>
int32_t headkv_guard(F && f) {
    try {
        f();
        return HEADKV_OK;
    } catch (const headkv_error & err) {
        headkv_set_error(err.what());
        return err.code;
    } catch (const std::bad_alloc &) {
        headkv_set_error("out of memory");
        return HEADKV_ERR_MEMORY;
    } catch (const std::exception & err) {
        headkv_set_error(err.what());
        return HEADKV_ERR_INTERNAL;
#ifdef __GLIBCXX__
    } catch (const abi::__forced_unwind &) {
        throw; // of pthread_cancel(): whoever stops it ends the process
#endif
    } catch (...) {
        headkv_set_error("an exception of a kind that is not known, of a callback");
        return HEADKV_ERR_INTERNAL;
    }
}

// of a function of the C API that another one calls: its error is that one's
inline void headkv_require_ok(int32_t code) {
    if (code != HEADKV_OK) {
        throw headkv_error(code, headkv_last_error());
    }
}

inline void headkv_require_pointer(const void * p) {
    if (!p) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "a pointer is NULL");
    }
}

// of a struct
inline void headkv_require_size(size_t size, size_t expected) {
    if (size != expected) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the size must be %zu, not %zu", expected, size));
    }
}

// of an array
inline void headkv_require_length(size_t n, size_t n_expected) {
    if (n != n_expected) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%zu values were given room for or handed over, %zu are needed", n, n_expected));
    }
}

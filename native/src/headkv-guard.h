#pragma once

#include "headkv-error.h"
#include "llama-impl.h"

// What every function of the C API does with exceptions and arguments.

// of contexts that have no memory of ours to keep it, and of calls without a context
inline thread_local std::string headkv_thread_error;

// The memory that headkv_thread_error is about, where it is from a call that any thread may make: it is not kept in the
// memory, which another thread may be using.
inline thread_local const void * headkv_thread_error_of = nullptr;

// run f(); any exception becomes a code and a text in error
template <typename F>
int32_t headkv_guard_plain(std::string & error, F && f) {
    try {
        f();
        return HEADKV_OK;
    } catch (const headkv_error & err) {
        headkv_set_error(error, err.what());
        return err.code;
    } catch (const std::bad_alloc &) {
        headkv_set_error(error, "out of memory");
        return HEADKV_ERR_MEMORY;
    } catch (const std::exception & err) {
        headkv_set_error(error, err.what());
        return HEADKV_ERR_INTERNAL;
    }
}

inline void headkv_require_pointer(const void * p) {
    if (!p) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "a pointer is NULL");
    }
}

inline void headkv_require_size(size_t size, size_t expected) {
    if (size != expected) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, format("the size must be %zu, not %zu", expected, size));
    }
}

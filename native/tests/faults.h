#pragma once

// Calls that fail, for a program that takes the place of libc's and libstdc++'s functions in all libraries of its
// process. For one source file of a program: what takes the place of operator new cannot be inline.

#include <dlfcn.h>

#include <cstdlib>
#include <new>

// calls of one kind, of which the N-th fails; thread_local, those of one thread
class fault_counter {
public:
    const char * const name;

    constexpr explicit fault_counter(const char * name) : name(name) {}

    // n more calls succeed, then one fails, or all the rest do
    void arm(int n, bool rest = false) {
        armed      = true;
        failed     = false;
        fails_rest = rest;
        n_left     = n;
    }

    // whether one has failed
    bool disarm() {
        armed = false;
        return failed;
    }

    // calls since it was armed, where none has failed
    int n_calls(int n) const { return n - n_left; }

    // asked by each call: whether it fails
    bool now() {
        if (!armed || (failed && !fails_rest) || n_left-- > 0) {
            return false;
        }
        failed = true;
        return true;
    }

private:
    bool armed      = false;
    bool failed     = false;
    bool fails_rest = false;
    int n_left      = 0;
};

// what the function of the program took the place of
template <typename Fn>
Fn libc(const char * name) {
    return (Fn) dlsym(RTLD_NEXT, name);
}

// Memory of this size is a ggml buffer. ggml aborts by design when it gets no few KiB for its own metadata.
inline bool is_buffer(size_t size) {
    return size >= 16 * 1024;
}

// asked by each operator new: whether it fails
inline bool (*new_fails)() = nullptr;

inline thread_local size_t largest_new = 0; // bytes

void * operator new(size_t size) {
    largest_new = size > largest_new ? size : largest_new;
    void * res  = new_fails && new_fails() ? nullptr : malloc(size);
    if (!res) {
        throw std::bad_alloc();
    }
    return res;
}

// as libstdc++ has it; a sanitizer has another one
void * operator new(size_t size, const std::nothrow_t &) noexcept {
    try {
        return operator new(size);
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void operator delete(void * ptr) noexcept {
    free(ptr);
}
void operator delete(void * ptr, size_t) noexcept {
    free(ptr);
}

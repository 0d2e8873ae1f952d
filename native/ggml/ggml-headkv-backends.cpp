#include "ggml-headkv-backends.h"

#include <string>

#if defined(_WIN32)

const char * headkv_backends_dir(void) {
    return nullptr;
}

#else

#include <dlfcn.h>

const char * headkv_backends_dir(void) {
    static const std::string dir = [] {
        Dl_info info;
        if (!dladdr((void *) &headkv_backends_dir, &info) || !info.dli_fname) {
            return std::string();
        }
        const std::string path = info.dli_fname;
        const size_t slash     = path.rfind('/');
        return slash == std::string::npos ? std::string() : path.substr(0, slash);
    }();
    return dir.empty() ? nullptr : dir.c_str();
}

#endif

#include "ggml-headkv-backends.h"

#include <cstdlib>
#include <memory>
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
        // not the folder of a link to the library: PyInstaller makes such
        const std::unique_ptr<char, decltype(&free)> real(realpath(info.dli_fname, nullptr), free);
        const std::string path = real ? real.get() : info.dli_fname;
        const size_t slash     = path.rfind('/');
        return slash == std::string::npos ? std::string() : path.substr(0, slash);
    }();
    return dir.empty() ? nullptr : dir.c_str();
}

#endif

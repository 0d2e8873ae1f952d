// PTX text out of fat binaries, and from it a library per kernel: ptx_translate.py makes C++ of it, the host's compiler
// the rest. Libraries are kept in a cache folder, by what they were made of.

#include "jit.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

namespace fs = std::filesystem;

// how nvcc wraps a fat binary, and what is inside: a header, then entries that begin with one of their own
struct fatbin_wrapper {
    int magic;
    int version;
    const char * data;
    void * unused;
};

struct fatbin_header {
    uint32_t magic;
    uint16_t version;
    uint16_t header_size;
    uint64_t size;
};

struct fatbin_entry {
    uint16_t kind; // 1: PTX
    uint16_t unused;
    uint32_t header_size;
    uint64_t size;
};

struct module {
    std::string ptx;
    std::map<std::string, const ptx_kernel *> kernels;
};

[[noreturn]] static void give_up(const std::string & what) {
    fprintf(stderr, "ptx: %s\n", what.c_str());
    exit(1);
}

static std::string ptx_of(const void * fatbin) {
    const auto * wrapper = (const fatbin_wrapper *) fatbin;
    const auto * header  = (const fatbin_header *) wrapper->data;
    if (header->magic != 0xBA55ED50) {
        give_up("no fat binary as nvcc 13 makes them");
    }
    const char * end = wrapper->data + header->header_size + header->size;
    for (const char * at = wrapper->data + header->header_size; at < end;) {
        const auto * entry = (const fatbin_entry *) at;
        const char * text  = at + entry->header_size;
        if (entry->kind == 1) {
            std::string ptx(text, strnlen(text, entry->size));
            return ptx.find(".version") == std::string::npos ? "" : ptx; // else compressed
        }
        at = text + entry->size;
    }
    return "";
}

void ** ptx_register_module(const void * fatbin) {
    return (void **) new module{ ptx_of(fatbin), {} };
}

static std::string contents(const fs::path & path) {
    std::ifstream file(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(file), {} };
}

// of all that a library is made of
static std::string key(const module & mod, const char * name) {
    std::map<fs::path, std::string> sources;
    for (const auto & file : fs::directory_iterator(HEADKV_PTX_SOURCES)) {
        if (file.path().extension() == ".h" || file.path().extension() == ".py") {
            sources[file.path()] = contents(file.path());
        }
    }
    std::string all = std::string(name) + HEADKV_PTX_COMPILE + mod.ptx;
    for (const auto & it : sources) {
        all += it.second;
    }
    char res[32];
    snprintf(res, sizeof(res), "%016zx", std::hash<std::string>()(all));
    return res;
}

static void run(const std::string & command, const char * kernel) {
    if (system(command.c_str()) != 0) {
        give_up(std::string(kernel) + " was not built by: " + command);
    }
}

static std::string quoted(const fs::path & path) {
    return "'" + path.string() + "'";
}

static const ptx_kernel * build(const module & mod, const char * name) {
    const char * folder  = getenv("HEADKV_PTX_CACHE");
    const fs::path cache = folder ? fs::path(folder) : fs::temp_directory_path() / "headkv-ptx";
    const fs::path base  = cache / key(mod, name);
    const fs::path so = fs::path(base) += ".so";

    if (!fs::exists(so)) {
        if (mod.ptx.empty()) {
            give_up(std::string(name) + " has no PTX: build with `make install PTX=1`");
        }
        const std::string unique = base.string() + "-" + std::to_string(getpid());
        const fs::path ptx       = unique + ".ptx";
        const fs::path cpp       = unique + ".cpp";
        const fs::path made      = unique + ".so";

        fs::create_directories(cache);
        std::ofstream(ptx, std::ios::binary) << mod.ptx;
        run(std::string(HEADKV_PTX_PYTHON) + " " HEADKV_PTX_SOURCES "/ptx_translate.py " + quoted(ptx) + " '" + name +
                "' >" + quoted(cpp),
            name);
        run(HEADKV_PTX_COMPILE " -I" HEADKV_PTX_SOURCES " " + quoted(cpp) + " -o " + quoted(made), name);
        fs::rename(made, so);
        fs::remove(ptx);
        fs::remove(cpp);
    }
    void * library = dlopen(so.c_str(), RTLD_NOW | RTLD_LOCAL);
    void * table   = library ? dlsym(library, "ptx_kernel_table") : nullptr;
    if (!table) {
        give_up(dlerror());
    }
    return (const ptx_kernel *) table;
}

const ptx_kernel & ptx_find_kernel(void ** handle, const char * name) {
    auto & mod    = *(module *) handle;
    auto & kernel = mod.kernels[name];
    if (!kernel) {
        kernel = build(mod, name);
    }
    return *kernel;
}

#include "scores/headkv-gguf.h"

#include "base/headkv-error.h"
#include "llama-impl.h"

#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_set>

#include <sys/stat.h>
#ifndef _WIN32
#include <fcntl.h>
#include <unistd.h>
#endif

// More than any model has; what a hostile file can make us allocate stays within a small multiple of these.
static constexpr uint64_t n_bytes_max   = 128 << 20; // of metadata and tensor infos
static constexpr uint64_t n_keys_max    = 1 << 16;
static constexpr uint64_t n_tensors_max = 1 << 16;
static constexpr uint64_t n_key_max     = 65535; // bytes of a key, as GGUF's own specification has it

//
// headkv_gguf_source
//

static FILE * open_file(const char * path) {
#ifdef _WIN32
    return ggml_fopen(path, "rb");
#else
    // a FIFO would otherwise wait for a writer
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        return nullptr;
    }
    FILE * file = fdopen(fd, "rb");
    if (!file) {
        close(fd);
    }
    return file;
#endif
}

static bool get_regular_size(FILE * file, uint64_t & size) {
#ifdef _WIN32
    struct _stat64 st;
    const bool ok = _fstat64(_fileno(file), &st) == 0 && (st.st_mode & _S_IFREG) != 0;
#else
    struct stat st;
    const bool ok = fstat(fileno(file), &st) == 0 && S_ISREG(st.st_mode);
#endif
    size = ok ? (uint64_t) st.st_size : 0;
    return ok;
}

headkv_gguf_source::headkv_gguf_source(const char * path) : name(path), file(open_file(path), fclose) {
    if (!file) {
        throw headkv_error(HEADKV_ERR_FILE, format("%s cannot be opened: %s", path, strerror(errno)));
    }
    if (!get_regular_size(file.get(), size)) {
        throw headkv_error(HEADKV_ERR_FILE, format("%s is not a regular file", path));
    }
}

headkv_gguf_source::headkv_gguf_source(const void * data, size_t size)
    : name("the data"),
      size(size),
      file(nullptr, fclose),
      data((const uint8_t *) data) {}

size_t headkv_gguf_source::read(uint64_t offset, void * dst, size_t n) {
    if (offset >= size) {
        return 0;
    }
    n = (size_t) std::min<uint64_t>(n, size - offset);
    if (n == 0) {
        return 0;
    }
    if (!file) {
        memcpy(dst, data + offset, n);
        return n;
    }
    if (offset != file_pos) {
#ifdef _WIN32
        const bool ok = _fseeki64(file.get(), (int64_t) offset, SEEK_SET) == 0;
#else
        const bool ok = fseeko(file.get(), (off_t) offset, SEEK_SET) == 0;
#endif
        if (!ok) {
            return 0;
        }
        file_pos = offset;
    }
    const size_t res  = fread(dst, 1, n, file.get());
    file_pos         += res;
    return res;
}

//
// what is checked before gguf.h sees the file
//

namespace {

// Walks through header, keys and tensor infos. gguf.h would find much of this too, but it only logs what it
// finds, and it loads enum values out of the file before it looks whether they are ones.
class scanner {
public:
    explicit scanner(headkv_gguf_source & source) : source(source) {}

    void scan() {
        scan_header();
        for (uint64_t i = 0; i < n_keys; ++i) {
            scan_key(i);
        }
        for (uint64_t i = 0; i < n_tensors; ++i) {
            scan_tensor(i);
        }
        const uint64_t start = n_tensors > 0 ? padded(pos) : pos;
        if (start > source.get_size() || n_data > source.get_size() - start) {
            damaged("it is shorter than its tensors");
        }
    }

private:
    headkv_gguf_source & source;

    uint64_t pos       = 0;
    uint64_t n_keys    = 0;
    uint64_t n_tensors = 0;
    uint64_t n_data    = 0; // bytes up to the end of the last tensor
    uint64_t alignment = GGUF_DEFAULT_ALIGNMENT;

    std::string part; // what is being read, for errors

    std::unordered_set<std::string> names; // of keys, then of tensors

    [[noreturn]] void fail(const std::string & what) const {
        throw headkv_error(HEADKV_ERR_FILE, source.get_name() + " " + what);
    }

    [[noreturn]] void damaged(const std::string & what) const { fail("is damaged: " + what); }

    // a name out of the file, fit for a terminal
    static std::string shown(const std::string & name) {
        std::string res = name.substr(0, 64);
        std::replace_if(res.begin(), res.end(), [](char c) { return c < 0x21 || c > 0x7e; }, '?');
        return res.size() < name.size() ? res + "..." : res;
    }

    uint64_t padded(uint64_t n) const { return (n + alignment - 1) / alignment * alignment; }

    uint64_t n_left() const { return source.get_size() - pos; }

    [[noreturn]] void ends() const { damaged("it ends within " + part); }

    void advance(uint64_t n) {
        if (n > n_left()) {
            ends();
        }
        pos += n;
        if (pos > n_bytes_max) {
            damaged(format("it has more than %llu MiB of metadata", (unsigned long long) n_bytes_max >> 20));
        }
    }

    void read(void * dst, size_t n) {
        const uint64_t start = pos;
        advance(n);
        if (source.read(start, dst, n) != n) {
            fail("cannot be read");
        }
    }

    template <typename T>
    T read() {
        T res;
        read(&res, sizeof(res));
        return res;
    }

    std::string read_name(uint64_t most) {
        const auto n = read<uint64_t>();
        if (n == 0 || n > most) {
            damaged(format("%s has a name of %llu bytes, not 1 to %llu", part.c_str(), (unsigned long long) n,
                           (unsigned long long) most));
        }
        std::string res(n, '\0');
        read(&res[0], n);
        if (res.find('\0') != std::string::npos) {
            damaged(part + " has a name with a zero byte in it"); // gguf_find_key() would stop there
        }
        if (!names.insert(res).second) {
            damaged(part + " is there twice: " + shown(res));
        }
        return res;
    }

    uint64_t read_count(const char * what, uint64_t most) {
        const auto res = read<uint64_t>();
        if (res > most) {
            damaged(
                format("it claims %llu %s, more than %llu", (unsigned long long) res, what, (unsigned long long) most));
        }
        return res;
    }

    void scan_header() {
        if (source.get_size() == 0) {
            fail("is not a GGUF file: it is empty");
        }
        char magic[4] = {};
        if (source.read(0, magic, 4) != 4 || memcmp(magic, GGUF_MAGIC, 4) != 0) {
            fail("is not a GGUF file");
        }
        pos  = 4;
        part = "its header";

        const auto version = read<uint32_t>();
        if (version != 0 && (version & 0xffff) == 0) {
            fail("is a GGUF file of the other byte order");
        }
        if (version != 2 && version != GGUF_VERSION) {
            fail(format("is a GGUF file of version %u, only 2 and %d are known", version, GGUF_VERSION));
        }
        n_tensors = read_count("tensors", n_tensors_max);
        n_keys    = read_count("keys", n_keys_max);
    }

    // bytes of one value, 0 for texts
    uint64_t value_size(uint32_t type) const {
        switch (type) {
        case GGUF_TYPE_STRING:
            return 0;
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32:
            return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64:
            return 8;
        case GGUF_TYPE_ARRAY:
            damaged(part + " holds an array of arrays");
        default:
            damaged(format("%s has the unknown type %u", part.c_str(), type));
        }
    }

    void scan_key(uint64_t i) {
        part = format("key number %llu", (unsigned long long) i + 1);

        const std::string key = read_name(n_key_max);

        part = "the value of " + shown(key);

        auto type           = read<uint32_t>();
        const bool is_array = type == GGUF_TYPE_ARRAY;
        uint64_t n          = 1;
        if (is_array) {
            type = read<uint32_t>();
            n    = read<uint64_t>();
        }

        const uint64_t n_bytes = value_size(type);
        if (n > n_left() / (n_bytes > 0 ? n_bytes : sizeof(uint64_t))) { // the product must not overflow
            ends();
        }
        if (key == GGUF_KEY_GENERAL_ALIGNMENT) {
            scan_alignment(type, is_array);
        } else if (n_bytes > 0) {
            advance(n * n_bytes);
        } else {
            for (uint64_t j = 0; j < n; ++j) {
                scan_text(!is_array && key.rfind("headkv.", 0) == 0);
            }
        }
    }

    void scan_alignment(uint32_t type, bool is_array) {
        if (type != GGUF_TYPE_UINT32 || is_array) {
            damaged(GGUF_KEY_GENERAL_ALIGNMENT " must be u32");
        }
        alignment = read<uint32_t>();
        if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
            damaged(format("%s must be a power of 2, not %u", GGUF_KEY_GENERAL_ALIGNMENT, (uint32_t) alignment));
        }
    }

    void scan_text(bool ours) {
        const auto n = read<uint64_t>();

        char chars[4096 + 1]; // texts that do not fit are too long where we use them
        const uint64_t n_read = ours ? std::min<uint64_t>(n, sizeof(chars)) : 0;
        if (n > n_left()) {
            ends();
        }
        read(chars, n_read);
        advance(n - n_read);
        if (memchr(chars, 0, n_read)) {
            damaged(part + " has a zero byte in it"); // gguf_get_val_str() would stop there
        }
    }

    void scan_tensor(uint64_t i) {
        if (i == 0) {
            names.clear();
        }
        part = format("tensor number %llu", (unsigned long long) i + 1);
        read_name(GGML_MAX_NAME - 1);

        const auto n_dims = read<uint32_t>();
        if (n_dims > GGML_MAX_DIMS) {
            damaged(format("%s has %u dimensions, more than %d", part.c_str(), n_dims, GGML_MAX_DIMS));
        }
        int64_t ne0 = 1;
        int64_t n   = 1;
        for (uint32_t j = 0; j < n_dims; ++j) {
            const auto ne = read<int64_t>();
            if (ne < 0 || (ne > 1 && n > INT64_MAX / ne)) {
                damaged(part + " has a shape that cannot be");
            }
            n   *= ne;
            ne0  = j == 0 ? ne : ne0;
        }

        const auto type = read<uint32_t>();
        if (type >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type) type) == 0) {
            damaged(format("%s has the unknown type %u", part.c_str(), type));
        }
        const int64_t n_block   = ggml_blck_size((ggml_type) type);
        const uint64_t n_per    = ggml_type_size((ggml_type) type);
        const uint64_t n_blocks = n / n_block;
        if (ne0 % n_block != 0 || n_blocks > INT64_MAX / n_per) {
            damaged(part + " has a shape that cannot be");
        }

        // all tensors in a row, each aligned
        const uint64_t offset = padded(n_data);
        if (read<uint64_t>() != offset) {
            damaged(part + " is not where the one before it ends");
        }
        n_data = offset + n_blocks * n_per;
        if (n_data > INT64_MAX) {
            ends();
        }
    }
};

} // namespace

gguf_context_ptr headkv_gguf_source::parse() {
    scanner(*this).scan();

    const auto read_for_gguf = [](void * userdata, void * output, uint64_t offset, size_t len) {
        return static_cast<headkv_gguf_source *>(userdata)->read(offset, output, len);
    };
    gguf_context_ptr res(gguf_init_from_callback(read_for_gguf, this, 0, size, { /*.no_alloc =*/true, nullptr }));
    if (!res) {
        throw headkv_error(HEADKV_ERR_FILE, name + " is damaged, or was changed while it was read");
    }
    return res;
}

#include "headkv-archive.h"

#include "headkv-error.h"
#include "llama-impl.h"

#include "ggml-backend.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

static constexpr char archive_mark[] = "headkv archive\n"; // what a file of ours begins with

headkv_archive::headkv_archive(const std::vector<headkv_layer_shape> & shapes, const std::string & path) : path(path) {
    for (const auto & shape : shapes) {
        layers.push_back({ ggml_row_size(shape.type_k, shape.d_k * shape.n_head_kv),
                           ggml_row_size(shape.type_v, shape.d_v * shape.n_head_kv), stride });
        stride += layers.back().size();
    }
    blocks.resize(layers.size());
    if (path.empty()) {
        return;
    }

    fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        fail("cannot be made");
    }
    try {
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s is in use", path.c_str()));
        }
        struct stat st;
        char mark[sizeof(archive_mark)] = {};
        if (fstat(fd, &st) != 0) {
            fail("cannot be made");
        }
        if (!S_ISREG(st.st_mode) || (st.st_size > 0 && (pread(fd, mark, sizeof(mark), 0) != (ssize_t) sizeof(mark) ||
                                                        memcmp(mark, archive_mark, sizeof(mark)) != 0))) {
            throw headkv_error(HEADKV_ERR_ARCHIVE,
                               format("%s is another file, not an archive of a KV cache: it stays as it is",
                                      path.c_str()));
        }
        if (ftruncate(fd, 0) != 0) {
            fail("cannot be emptied");
        }
        write(archive_mark, sizeof(archive_mark), 0);
    } catch (...) {
        close(fd);
        throw;
    }
}

headkv_archive::~headkv_archive() {
    if (fd >= 0) {
        unlink(path.c_str());
        close(fd);
    }
}

template <typename K, typename F>
void headkv_archive::each(uint32_t ikv, uint32_t b, K * k, K * v, uint32_t cell, uint32_t p0, uint32_t n,
                          F && f) const {
    const auto & l       = layers[ikv];
    const uint32_t first = std::max(p0, b * n_block);
    const uint32_t last  = std::min(p0 + n, (b + 1) * n_block);
    const size_t i       = first - b * n_block; // in the block
    const size_t row     = cell + (first - p0);

    f(k, row * l.row_k, i * l.row_k, (last - first) * l.row_k);
    f(v, row * l.row_v, n_block * l.row_k + i * l.row_v, (last - first) * l.row_v);
}

void headkv_archive::put(uint32_t ikv, const ggml_tensor * k, const ggml_tensor * v, uint32_t cell, uint32_t p0,
                         uint32_t n) {
    std::vector<uint8_t> rows;
    for (uint32_t b = p0 / n_block; b * n_block < p0 + n; ++b) {
        if (fd < 0 && b >= blocks[ikv].size()) {
            blocks[ikv].push_back(block(new uint8_t[layers[ikv].size()]));
        }
        each(ikv, b, k, v, cell, p0, n, [&](const ggml_tensor * from, size_t from_offset, size_t offset, size_t size) {
            if (fd < 0) {
                ggml_backend_tensor_get(from, blocks[ikv][b].get() + offset, from_offset, size);
                return;
            }
            rows.resize(size);
            ggml_backend_tensor_get(from, rows.data(), from_offset, size);
            write(rows.data(), size, file_offset(ikv, b) + offset);
        });
    }
}

void headkv_archive::get(uint32_t ikv, ggml_tensor * k, ggml_tensor * v, uint32_t cell, uint32_t p0,
                         uint32_t n) const {
    std::vector<uint8_t> rows;
    for (uint32_t b = p0 / n_block; b * n_block < p0 + n; ++b) {
        each(ikv, b, k, v, cell, p0, n, [&](ggml_tensor * to, size_t to_offset, size_t offset, size_t size) {
            if (fd < 0) {
                ggml_backend_tensor_set(to, blocks[ikv][b].get() + offset, to_offset, size);
                return;
            }
            rows.resize(size);
            read(rows.data(), size, file_offset(ikv, b) + offset);
            ggml_backend_tensor_set(to, rows.data(), to_offset, size);
        });
    }
}

void headkv_archive::cut(uint32_t n) {
    const size_t n_blocks = (n + n_block - 1) / n_block;
    for (auto & of_layer : blocks) {
        of_layer.resize(std::min(of_layer.size(), n_blocks));
    }
    const size_t size = n > 0 ? header_size + n_blocks * stride : sizeof(archive_mark);
    if (fd >= 0 && n_written > size && ftruncate(fd, size) == 0) {
        n_written = size; // else the file is only longer than it has to be
    }
}

size_t headkv_archive::size() const {
    if (fd >= 0) {
        return n_written;
    }
    size_t res = 0;
    for (size_t ikv = 0; ikv < layers.size(); ++ikv) {
        res += blocks[ikv].size() * layers[ikv].size();
    }
    return res;
}

void headkv_archive::read(void * to, size_t size, size_t offset) const {
    uint8_t * bytes = (uint8_t *) to;
    while (size > 0) {
        const ssize_t n = pread(fd, bytes, size, offset);
        if (n == 0) {
            throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s has been cut short", path.c_str()));
        }
        if (n < 0 && errno != EINTR) {
            fail("cannot be read");
        }
        const size_t n_read = std::max<ssize_t>(n, 0);
        bytes += n_read;
        offset += n_read;
        size -= n_read;
    }
}

void headkv_archive::write(const void * from, size_t size, size_t offset) {
    struct stat st;
    if (fstat(fd, &st) != 0) {
        fail("cannot be written");
    }
    if ((size_t) st.st_size < n_written) { // what is missing would read as zeros once the file is longer again
        throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s has been cut short", path.c_str()));
    }
    const uint8_t * bytes = (const uint8_t *) from;
    while (size > 0) {
        const ssize_t n = pwrite(fd, bytes, size, offset);
        if (n < 0 && errno != EINTR) {
            fail("cannot be written");
        }
        const size_t n_new = std::max<ssize_t>(n, 0);
        bytes += n_new;
        offset += n_new;
        size -= n_new;
    }
    n_written = std::max(n_written, offset);
}

void headkv_archive::fail(const char * what) const {
    throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s %s: %s", path.c_str(), what, strerror(errno)));
}

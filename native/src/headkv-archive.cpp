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
            throw headkv_error(
                HEADKV_ERR_ARCHIVE,
                format("%s is another file, not an archive of a KV cache: it stays as it is", path.c_str()));
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

template <typename K, typename F>
void headkv_archive::put_from(uint32_t ikv, const K * k, const K * v, uint32_t cell, uint32_t p0, uint32_t n,
                              F && copy) {
    if (p0 > layers[ikv].n_rows) {
        throw headkv_error(HEADKV_ERR_STATE, format("rows from position %u on do not follow on the archive's %u", p0,
                                                    layers[ikv].n_rows));
    }
    std::vector<uint8_t> rows;
    for (uint32_t b = p0 / n_block; b * n_block < p0 + n; ++b) {
        if (fd < 0 && b >= blocks[ikv].size()) {
            blocks[ikv].push_back(block(new uint8_t[layers[ikv].size()]));
        }
        each(ikv, b, k, v, cell, p0, n, [&](const K * from, size_t from_offset, size_t offset, size_t size) {
            if (fd < 0) {
                copy(blocks[ikv][b].get() + offset, from, from_offset, size);
                return;
            }
            rows.resize(size);
            copy(rows.data(), from, from_offset, size);
            write(rows.data(), size, file_offset(ikv, b) + offset);
        });
    }
    layers[ikv].n_rows = std::max(layers[ikv].n_rows, p0 + n);
}

template <typename K, typename F>
void headkv_archive::get_to(uint32_t ikv, K * k, K * v, uint32_t cell, uint32_t p0, uint32_t n, F && copy) const {
    std::vector<uint8_t> rows;
    for (uint32_t b = p0 / n_block; b * n_block < p0 + n; ++b) {
        each(ikv, b, k, v, cell, p0, n, [&](K * to, size_t to_offset, size_t offset, size_t size) {
            if (fd < 0) {
                copy(blocks[ikv][b].get() + offset, to, to_offset, size);
                return;
            }
            rows.resize(size);
            read(rows.data(), size, file_offset(ikv, b) + offset);
            copy(rows.data(), to, to_offset, size);
        });
    }
}

void headkv_archive::put(uint32_t ikv, const ggml_tensor * k, const ggml_tensor * v, uint32_t cell, uint32_t p0,
                         uint32_t n) {
    put_from(ikv, k, v, cell, p0, n, [](uint8_t * to, const ggml_tensor * from, size_t offset, size_t size) {
        ggml_backend_tensor_get(from, to, offset, size);
    });
}

void headkv_archive::get(uint32_t ikv, ggml_tensor * k, ggml_tensor * v, uint32_t cell, uint32_t p0, uint32_t n) const {
    get_to(ikv, k, v, cell, p0, n, [](const uint8_t * from, ggml_tensor * to, size_t offset, size_t size) {
        ggml_backend_tensor_set(to, from, offset, size);
    });
}

void headkv_archive::put(uint32_t ikv, const uint8_t * rows, uint32_t p0, uint32_t n) {
    put_from(ikv, rows, rows + n * layers[ikv].row_k, 0, p0, n,
             [](uint8_t * to, const uint8_t * from, size_t offset, size_t size) { memcpy(to, from + offset, size); });
}

void headkv_archive::get(uint32_t ikv, uint8_t * rows, uint32_t p0, uint32_t n) const {
    get_to(ikv, rows, rows + n * layers[ikv].row_k, 0, p0, n,
           [](const uint8_t * from, uint8_t * to, size_t offset, size_t size) { memcpy(to + offset, from, size); });
}

uint32_t headkv_archive::n_rows() const {
    uint32_t res = UINT32_MAX;
    for (const auto & layer : layers) {
        res = std::min(res, layer.n_rows);
    }
    return res;
}

void headkv_archive::cut(uint32_t n) {
    const size_t n_blocks = (n + n_block - 1) / n_block;
    for (auto & of_layer : blocks) {
        of_layer.resize(std::min(of_layer.size(), n_blocks));
    }
    for (auto & layer : layers) {
        layer.n_rows = std::min(layer.n_rows, n);
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
        const size_t n_read  = std::max<ssize_t>(n, 0);
        bytes               += n_read;
        offset              += n_read;
        size                -= n_read;
    }
}

void headkv_archive::write(const void * from, size_t size, size_t offset) {
    const uint8_t * bytes = (const uint8_t *) from;
    while (size > 0) {
        const ssize_t n = pwrite(fd, bytes, size, offset);
        if (n < 0 && errno != EINTR) {
            fail("cannot be written");
        }
        const size_t n_new  = std::max<ssize_t>(n, 0);
        bytes              += n_new;
        offset             += n_new;
        size               -= n_new;
    }
    n_written = std::max(n_written, offset);
}

void headkv_archive::fail(const char * what) const {
    throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s %s: %s", path.c_str(), what, strerror(errno)));
}

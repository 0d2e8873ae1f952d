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
#include <filesystem>
#include <utility>

static constexpr char archive_mark[] = "headkv archive\n"; // what a file of ours begins with

headkv_archive::headkv_archive(const std::vector<headkv_layer_shape> & shapes, const char * path)
    : path(path ? std::filesystem::absolute(path).string() : "") {
    for (const auto & shape : shapes) {
        layers.push_back({ ggml_row_size(shape.type_k, shape.d_k * shape.n_head_kv),
                           ggml_row_size(shape.type_v, shape.d_v * shape.n_head_kv), stride });
        stride += layers.back().size();
    }
    if (path) {
        open_file();
    }
}

headkv_archive::~headkv_archive() {
    if (fd >= 0) {
        remove_file();
        close(fd);
    }
}

//
// slots
//

uint32_t headkv_archive::free_slot() const {
    std::vector<bool> taken(table.size() + table_before.size() + 1);
    for (const auto * of : { &table, &table_before }) {
        for (const uint32_t s : *of) {
            if (s < taken.size()) {
                taken[s] = true;
            }
        }
    }
    return std::find(taken.begin(), taken.end(), false) - taken.begin();
}

void headkv_archive::make_room(uint32_t ikv, uint32_t b) {
    if (b >= table.size()) {
        table.push_back(free_slot());
    }
    if (fd >= 0) {
        return;
    }
    const uint32_t s = table[b];
    if (s >= slots.size()) {
        slots.resize(s + 1);
    }
    slots[s].resize(layers.size());
    if (!slots[s][ikv]) {
        slots[s][ikv]  = block(new uint8_t[layers[ikv].size()]);
        n_bytes       += layers[ikv].size();
    }
}

void headkv_archive::copy(uint32_t ikv, uint32_t from, uint32_t to, uint32_t n_rows) {
    const auto & l = layers[ikv];
    for (const auto & [offset, size] :
         { std::pair(size_t(0), n_rows * l.row_k), std::pair(n_block * l.row_k, n_rows * l.row_v) }) {
        if (fd < 0) {
            memcpy(in_memory(ikv, to) + offset, in_memory(ikv, from) + offset, size);
            continue;
        }
        std::vector<uint8_t> rows(size);
        read(rows.data(), size, in_file(ikv, from) + offset);
        write(rows.data(), size, in_file(ikv, to) + offset);
    }
}

// what lies in no slot of the table goes
void headkv_archive::free_slots() {
    const uint32_t n_used = table.empty() ? 0 : 1 + *std::max_element(table.begin(), table.end());
    if (fd >= 0) {
        shorten(table.empty() ? sizeof(archive_mark) : header_size + n_used * stride);
        return;
    }
    slots.resize(std::min<size_t>(slots.size(), n_used));
    for (uint32_t s = 0; s < slots.size(); ++s) {
        if (std::find(table.begin(), table.end(), s) == table.end()) {
            slots[s].clear();
        }
    }
    size_t size = 0;
    for (const auto & slot : slots) {
        for (size_t ikv = 0; ikv < slot.size(); ++ikv) {
            size += slot[ikv] ? layers[ikv].size() : 0;
        }
    }
    n_bytes = size;
}

void headkv_archive::fork(uint32_t n_past, uint32_t n_held) {
    drop();
    table_before   = table;
    n_bytes_before = n_bytes;
    forked         = true;

    // a block of which some rows stay: what is put after all that is held does them no harm
    const uint32_t b      = n_past / n_block;
    const uint32_t n_rows = n_past % n_block;
    if (n_rows == 0 || n_past >= n_held) {
        table.resize(b + (n_rows > 0));
        return;
    }
    table.resize(b);
    for (uint32_t ikv = 0; ikv < layers.size(); ++ikv) {
        make_room(ikv, b);
        copy(ikv, table_before[b], table[b], n_rows);
    }
}

void headkv_archive::keep(uint32_t n) {
    forked = false;
    table_before.clear();
    table.resize((n + n_block - 1) / n_block);
    free_slots();
}

void headkv_archive::drop() {
    if (!forked) {
        return;
    }
    forked = false;
    table.swap(table_before);
    table_before.clear();
    if (fd >= 0) {
        shorten(n_bytes_before);
    } else {
        free_slots();
    }
}

void headkv_archive::clear() {
    forked = false;
    table_before.clear();
    table.clear();
    for (auto & layer : layers) {
        layer.n_rows = 0;
    }
    free_slots();
    if (fd >= 0) {
        n_bytes = std::min<size_t>(n_bytes, file_size()); // nothing is missed of a file that was cut short
    }
}

//
// rows
//

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
    std::vector<uint8_t> rows;
    for (uint32_t b = p0 / n_block; b * n_block < p0 + n; ++b) {
        make_room(ikv, b);
        each(ikv, b, k, v, cell, p0, n, [&](const K * from, size_t from_offset, size_t offset, size_t size) {
            if (fd < 0) {
                copy(in_memory(ikv, table[b]) + offset, from, from_offset, size);
                return;
            }
            rows.resize(size);
            copy(rows.data(), from, from_offset, size);
            write(rows.data(), size, in_file(ikv, table[b]) + offset);
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
                copy(in_memory(ikv, table[b]) + offset, to, to_offset, size);
                return;
            }
            rows.resize(size);
            read(rows.data(), size, in_file(ikv, table[b]) + offset);
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
    if (p0 > layers[ikv].n_rows) {
        throw headkv_error(HEADKV_ERR_STATE, format("rows from position %u on do not follow on the archive's %u", p0,
                                                    layers[ikv].n_rows));
    }
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

//
// the file
//

void headkv_archive::open_file() {
    fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        fail("cannot be made");
    }
    bool is_ours = false;
    try {
        struct stat st;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0 || fstat(fd, &st) != 0 || st.st_nlink == 0) {
            throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s is in use", path.c_str()));
        }
        char mark[sizeof(archive_mark)] = {};
        if (!S_ISREG(st.st_mode) || (st.st_size > 0 && (pread(fd, mark, sizeof(mark), 0) != (ssize_t) sizeof(mark) ||
                                                        memcmp(mark, archive_mark, sizeof(mark)) != 0))) {
            throw headkv_error(
                HEADKV_ERR_ARCHIVE,
                format("%s is another file, not an archive of a KV cache: it stays as it is", path.c_str()));
        }
        is_ours = true;
        if (ftruncate(fd, 0) != 0) {
            fail("cannot be emptied");
        }
        write(archive_mark, sizeof(archive_mark), 0);
    } catch (...) {
        if (is_ours) {
            remove_file();
        }
        close(fd);
        throw;
    }
}

// unless another one has its name by now
void headkv_archive::remove_file() const {
    struct stat ours, named;
    if (fstat(fd, &ours) == 0 && stat(path.c_str(), &named) == 0 && ours.st_dev == named.st_dev &&
        ours.st_ino == named.st_ino) {
        unlink(path.c_str());
    }
}

size_t headkv_archive::file_size() const {
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_size : 0;
}

// never longer: what is missed of a file that was cut short would read as zeros
void headkv_archive::shorten(size_t size) {
    if (file_size() <= size || ftruncate(fd, size) == 0) { // else it is only longer than it has to be
        n_bytes = std::min<size_t>(n_bytes, size);
    }
}

void headkv_archive::read(void * to, size_t size, size_t offset) const {
    uint8_t * bytes = (uint8_t *) to;
    while (size > 0) {
        const ssize_t n = pread(fd, bytes, size, offset);
        if (n == 0) {
            fail_short();
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
    if (file_size() < n_bytes) {
        fail_short();
    }
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
    n_bytes = std::max<size_t>(n_bytes, offset);
}

void headkv_archive::fail(const char * what) const {
    throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s %s: %s", path.c_str(), what, strerror(errno)));
}

void headkv_archive::fail_short() const {
    throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s has been cut short", path.c_str()));
}

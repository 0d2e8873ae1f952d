#pragma once

#include "llama-io.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

// cache state to and from host memory: carries cells over into another number of them
class headkv_io_write : public llama_io_write_i {
public:
    void write(const void * src, size_t size) override {
        const uint8_t * bytes = (const uint8_t *) src;
        data.insert(data.end(), bytes, bytes + size);
    }

    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        data.resize(data.size() + size);
        ggml_backend_tensor_get(tensor, data.data() + data.size() - size, offset, size);
    }

    size_t n_bytes() override { return data.size(); }

    std::vector<uint8_t> data;
};

// into memory of a caller's; or nowhere, to count
class headkv_io_fill : public llama_io_write_i {
public:
    headkv_io_fill(void * data, size_t size) : data((uint8_t *) data), size(size) {}

    void write(const void * src, size_t n) override {
        if (uint8_t * to = take(n)) {
            memcpy(to, src, n);
        }
    }

    void write_tensor(ggml_tensor * tensor, size_t offset, size_t n) override {
        if (uint8_t * to = take(n)) {
            ggml_backend_tensor_get(tensor, to, offset, n);
        }
    }

    size_t n_bytes() override { return pos; }

private:
    uint8_t * take(size_t n) {
        if (data && n > size - pos) {
            throw std::runtime_error("the cache state has become longer");
        }
        pos += n;
        return data ? data + pos - n : nullptr;
    }

    uint8_t * const data;
    const size_t size;
    size_t pos = 0;
};

class headkv_io_read : public llama_io_read_i {
public:
    headkv_io_read(const void * data, size_t size) : data((const uint8_t *) data), size(size) {}
    explicit headkv_io_read(const std::vector<uint8_t> & data) : headkv_io_read(data.data(), data.size()) {}

    void read(void * dst, size_t size) override { memcpy(dst, take(size), size); }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        ggml_backend_tensor_set(tensor, take(size), offset, size);
    }

    size_t n_bytes() override { return pos; }

private:
    const uint8_t * take(size_t n) {
        if (n > size - pos) {
            throw std::runtime_error("unexpected end of the cache state");
        }
        pos += n;
        return data + pos - n;
    }

    const uint8_t * const data;
    const size_t size;
    size_t pos = 0;
};

// gives back what was read ahead before going on with the rest
class headkv_io_unread : public llama_io_read_i {
public:
    headkv_io_unread(llama_io_read_i & io, const void * ahead, size_t size) : io(io), ahead(ahead, size), size(size) {}

    void read(void * dst, size_t n) override {
        const size_t n_ahead = std::min(n, size - ahead.n_bytes());
        ahead.read(dst, n_ahead);
        if (n_ahead < n) {
            io.read((uint8_t *) dst + n_ahead, n - n_ahead);
        }
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t n) override {
        if (ahead.n_bytes() < size) {
            throw std::runtime_error("the cache state begins with rows");
        }
        io.read_tensor(tensor, offset, n);
    }

    void discard() override { io.discard(); }
    size_t n_bytes() override { return io.n_bytes(); }

private:
    llama_io_read_i & io;
    headkv_io_read ahead;
    const size_t size;
};

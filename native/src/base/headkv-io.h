#pragma once

#include "llama-io.h"

#include "ggml-backend.h"

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

// gives back a word that was read ahead before going on with the rest
class headkv_io_unread : public llama_io_read_i {
public:
    headkv_io_unread(llama_io_read_i & io, uint32_t word) : io(io), word(word) {}

    void read(void * dst, size_t size) override {
        if (!pending) {
            io.read(dst, size);
            return;
        }
        if (size != sizeof(word)) {
            throw std::runtime_error("the cache state does not begin with a 32-bit word");
        }
        memcpy(dst, &word, size);
        pending = false;
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        io.read_tensor(tensor, offset, size);
    }
    void discard() override { io.discard(); }
    size_t n_bytes() override { return io.n_bytes(); }

private:
    llama_io_read_i & io;
    const uint32_t word;
    bool pending = true;
};

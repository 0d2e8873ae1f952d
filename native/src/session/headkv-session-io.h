#pragma once

#include "llama-io.h"
#include "session/headkv-session-file.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

// A section that is begun, as llama.cpp's state of a memory: what lies in tensors passes by in pieces of bounded size.

class headkv_session_io {
protected:
    // f(offset, bytes, their size) for one piece after the other
    template <typename F>
    void each_piece(size_t offset, size_t size, F && f) {
        for (size_t i = 0, n; i < size; i += n) {
            n = std::min(headkv_session_piece, size - i);
            piece.resize(std::max(piece.size(), n));
            f(offset + i, piece.data(), n);
        }
        n_done += size;
    }

    size_t n_done = 0;

private:
    std::vector<uint8_t> piece;
};

class headkv_session_io_write : public llama_io_write_i, private headkv_session_io {
public:
    explicit headkv_session_io_write(headkv_session_writer & file) : file(file) {}

    void write(const void * src, size_t size) override {
        file.write(src, size);
        n_done += size;
    }

    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        each_piece(offset, size, [&](size_t at, uint8_t * bytes, size_t n) {
            ggml_backend_tensor_get(tensor, bytes, at, n);
            file.write(bytes, n);
        });
    }

    size_t n_bytes() override { return n_done; }

private:
    headkv_session_writer & file;
};

class headkv_session_io_read : public llama_io_read_i, private headkv_session_io {
public:
    headkv_session_io_read(headkv_session_reader & file, size_t size) : file(file), size(size) {}

    void read(void * dst, size_t n) override {
        require(n);
        file.fill(dst, n);
        n_done += n;
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t n) override {
        require(n);
        each_piece(offset, n, [&](size_t at, uint8_t * bytes, size_t n_now) {
            file.fill(bytes, n_now);
            ggml_backend_tensor_set(tensor, bytes, at, n_now);
        });
    }

    size_t n_bytes() override { return n_done; }

private:
    void require(size_t n) const {
        if (n > size - n_done) {
            throw std::runtime_error("unexpected end of the cache state");
        }
    }

    headkv_session_reader & file;
    const size_t size;
};

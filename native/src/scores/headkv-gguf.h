#pragma once

#include "ggml-cpp.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

// The bytes of a GGUF file that nobody vouches for, on disk or in memory.
class headkv_gguf_source {
public:
    // a regular file; throws headkv_error with HEADKV_ERR_FILE
    explicit headkv_gguf_source(const char * path);

    // memory that outlives this
    headkv_gguf_source(const void * data, size_t size);

    const std::string & get_name() const { return name; }

    uint64_t get_size() const { return size; }

    // bytes read into dst, less than n at the end or where the file cannot be read
    size_t read(uint64_t offset, void * dst, size_t n);

    // Metadata and tensor infos, no tensor data. Everything that gguf.h would trip over, or only log, is found
    // before: throws headkv_error with HEADKV_ERR_FILE and a sentence that names the key or the tensor.
    gguf_context_ptr parse();

private:
    std::string name;
    uint64_t size = 0;

    std::unique_ptr<FILE, int (*)(FILE *)> file;
    uint64_t file_pos    = 0;
    const uint8_t * data = nullptr; // without a file
};

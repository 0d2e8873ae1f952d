#pragma once

#include "base/headkv-new-file.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

// Session files as bytes: sections with a checksum each. docs/sessions.md is the format. All of it throws headkv_error
// with HEADKV_ERR_SESSION, std::bad_alloc; and where it watches a flag, which another thread may set, with
// HEADKV_ERR_CANCELLED.

// bytes of a section that are in memory at once, where it is written or read in pieces
static constexpr size_t headkv_session_piece = 1 << 20;

// the CRC-32 of zlib; crc: of what comes before
uint32_t headkv_crc32(const void * data, size_t size, uint32_t crc = 0);

// Writes a session beside the one of that name, which stays until commit(). Only its owner may read a new one.
class headkv_session_writer {
public:
    // HEADKV_ERR_SESSION also for a name that is another file's
    headkv_session_writer(const char * path, const std::atomic<bool> & cancelled);
    void section(const char * name, const void * data, size_t size);

    // a section that is written by several calls of write(), size bytes in all
    void begin(const char * name, uint64_t size);
    void write(const void * data, size_t size);
    void end();

    void commit();

private:
    [[noreturn]] void fail() const;

    const std::string path;
    const std::atomic<bool> & cancelled;
    headkv_new_file file;
    uint32_t crc = 0;
};

class headkv_session_reader {
public:
    // finds the sections, of which there may be these, in this order
    headkv_session_reader(const char * path, const std::vector<std::string> & names);

    [[noreturn]] void fail(const std::string & what) const; // a sentence about this session

    void watch(const std::atomic<bool> * flag) { cancelled = flag; } // NULL: none
    void require_not_cancelled() const;

    void verify();                         // all checksums
    void verify(const std::string & name); // each once

    bool has(const std::string & name) const { return sections.count(name) > 0; }
    uint64_t size(const std::string & name) const;       // bytes; 0 where it is missing
    std::vector<uint8_t> read(const std::string & name); // whole, and checked
    void begin(const std::string & name);                // read by several calls of fill(), whole and in order
    void fill(void * data, size_t size);
    void end(); // checked

private:
    void get(void * data, size_t size);
    void seek(uint64_t offset);
    const std::string path;
    const std::atomic<bool> * cancelled = nullptr;
    headkv_file_ptr file;
    struct place {
        uint64_t at;   // where it begins
        uint64_t size; // bytes
        bool is_sound; // its checksum was right
    };

    std::map<std::string, place> sections;
    std::string current;
    uint32_t crc  = 0;
    uint64_t left = 0; // bytes of the section that is read
};

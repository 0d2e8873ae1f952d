#pragma once

#include <sys/types.h>

#include <cstdio>
#include <memory>
#include <string>

using headkv_file_ptr = std::unique_ptr<FILE, int (*)(FILE *)>;

// A file that takes the place of another one as a whole, or leaves nothing behind. It has no name until it does, where
// the file system can do without, so that a process that is killed leaves none either.
class headkv_new_file {
public:
    headkv_new_file() = default;
    ~headkv_new_file();
    headkv_new_file(const headkv_new_file &)             = delete;
    headkv_new_file & operator=(const headkv_new_file &) = delete;

    // Both: false, and errno, where that cannot be. place: see headkv_place_of(); mode: 0 for its owner alone.
    bool open(const std::string & place, mode_t mode);
    bool commit(); // to the disk, and under its name

    FILE * get() const { return file.get(); }

private:
    std::string place;
    std::string name; // until it takes its place; empty for none
    headkv_file_ptr file{ nullptr, fclose };
};

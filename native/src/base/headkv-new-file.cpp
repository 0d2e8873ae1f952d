#include "base/headkv-new-file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>

namespace {

std::string folder_of(const std::string & place) {
    return place.substr(0, place.find_last_of('/') + 1);
}

// The name is made by the file that has it.
int open_named(const std::string & folder, std::string & name) {
    name         = folder + "headkv-XXXXXX";
    const int fd = mkostemp(name.data(), O_CLOEXEC);
    if (fd < 0) {
        name.clear();
    }
    return fd;
}

#ifdef O_TMPFILE

int open_nameless(const std::string & folder) {
    return open(folder.empty() ? "." : folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

// of letters that are likely nobody else's
std::string any_name(const std::string & folder) {
    static std::atomic<uint64_t> n_names{ 0 };
    const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    const auto now       = std::chrono::steady_clock::now().time_since_epoch().count();
    uint64_t x           = ((uint64_t) now ^ ((uint64_t) getpid() << 40)) + n_names++ * 0x9e3779b97f4a7c15;
    std::string name     = folder + "headkv-";
    for (int i = 0; i < 6; ++i, x /= 36) {
        name += letters[x % 36];
    }
    return name;
}

// false, and errno, where that cannot be
bool give_name(int fd, const std::string & folder, std::string & name) {
    const std::string itself = "/proc/self/fd/" + std::to_string(fd);
    for (int i = 0; i < 100; ++i) {
        name = any_name(folder);
        if (linkat(AT_FDCWD, itself.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0) {
            return true;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    name.clear(); // which is another file's, or nobody's
    return false;
}

// Whether such a file can have a name later: tried with another one.
bool can_be_named(const std::string & folder) {
    std::string name;
    const int fd   = open_nameless(folder);
    const bool res = fd >= 0 && give_name(fd, folder, name);
    if (res) {
        unlink(name.c_str());
    }
    if (fd >= 0) {
        close(fd);
    }
    return res;
}

#else

int open_nameless(const std::string &) {
    return -1;
}

bool give_name(int, const std::string &, std::string &) {
    return false;
}

bool can_be_named(const std::string &) {
    return false;
}

#endif

} // namespace

headkv_new_file::~headkv_new_file() {
    if (!name.empty()) {
        unlink(name.c_str());
    }
}

bool headkv_new_file::open(const std::string & place, mode_t mode) {
    this->place              = place;
    const std::string folder = folder_of(place);
    int fd                   = can_be_named(folder) ? open_nameless(folder) : -1;
    if (fd < 0) {
        fd = open_named(folder, name);
    }
    if (fd < 0) {
        return false;
    }
    file.reset(fdopen(fd, "wb"));
    if (!file) {
        const int reason = errno;
        close(fd);
        errno = reason;
    }
    return file && (mode == 0 || fchmod(fd, mode) == 0);
}

bool headkv_new_file::commit() {
    if (fflush(file.get()) != 0 || fsync(fileno(file.get())) != 0 ||
        (name.empty() && !give_name(fileno(file.get()), folder_of(place), name)) || fclose(file.release()) != 0 ||
        rename(name.c_str(), place.c_str()) != 0) {
        return false;
    }
    name.clear();
    return true;
}

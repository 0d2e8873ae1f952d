// The archive's file: made, locked, read, written and taken away.

#include "base/headkv-error.h"
#include "llama-impl.h"
#include "rows/headkv-archive.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

static constexpr char archive_mark[] = "headkv archive\n"; // what a file of ours begins with

void headkv_archive::open_file() {
    static constexpr int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;

    fd           = open(path.c_str(), flags | O_CREAT | O_EXCL, 0600);
    bool is_ours = fd >= 0;
    if (fd < 0 && errno == EEXIST) { // what a process that was killed has left, or another file
        fd = open(path.c_str(), flags);
    }
    if (fd < 0) {
        fail("cannot be made");
    }
    try {
        // A file system need not have locks: nobody else takes one that is new, but who made one that is there?
        const bool is_locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (!is_locked && errno != EWOULDBLOCK && !is_ours) {
            fail("is there already, and its file system has no locks that tell whether it is in use");
        }
        struct stat st;
        if ((!is_locked && errno == EWOULDBLOCK) || fstat(fd, &st) != 0 || st.st_nlink == 0) {
            throw headkv_error(HEADKV_ERR_ARCHIVE, format("the archive %s is in use", path.c_str()));
        }
        char mark[sizeof(archive_mark)] = {};
        if (!is_ours && (!S_ISREG(st.st_mode) || pread(fd, mark, sizeof(mark), 0) != (ssize_t) sizeof(mark) ||
                         memcmp(mark, archive_mark, sizeof(mark)) != 0)) {
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
    if (fstat(fd, &ours) == 0 && lstat(path.c_str(), &named) == 0 && ours.st_dev == named.st_dev &&
        ours.st_ino == named.st_ino) {
        unlink(path.c_str());
    }
}

size_t headkv_archive::file_size() const {
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_size : 0;
}

// the mark stays; never longer: what is missed of a file that was cut short would read as zeros
void headkv_archive::shorten(size_t size) {
    size = std::max(size, sizeof(archive_mark));
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

#include "session/headkv-session-file.h"

#include "base/headkv-error.h"
#include "base/headkv-path.h"
#include "llama-impl.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

static constexpr char magic[16]   = { 'h', 'e', 'a', 'd', 'k', 'v', ' ', 's', 'e', 's', 's', 'i', 'o', 'n', '\n', 0 };
static constexpr uint32_t version = 3;

namespace {

struct start_of_file {
    char magic[16];
    uint32_t version;
};

struct start_of_section {
    char name[8];
    uint64_t size;
};

} // namespace

static_assert(sizeof(start_of_file) == 20 && sizeof(start_of_section) == 16, "as in the file");

// eight bytes at a time: an archive has hundreds of MiB
uint32_t headkv_crc32(const void * data, size_t size, uint32_t crc) {
    static const auto table = [] {
        std::array<std::array<uint32_t, 256>, 8> res;
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t x = i;
            for (auto & row : res) {
                for (int bit = 0; bit < 8; ++bit) {
                    x = x >> 1 ^ (x & 1 ? 0xedb88320u : 0);
                }
                row[i] = x;
            }
        }
        return res;
    }();
    const uint8_t * at = (const uint8_t *) data;
    for (crc = ~crc; size >= 8; size -= 8, at += 8) {
        uint32_t next = 0;
        for (int i = 0; i < 8; ++i) {
            next ^= table[7 - i][at[i] ^ (i < 4 ? crc >> 8 * i & 0xff : 0)];
        }
        crc = next;
    }
    for (; size > 0; --size, ++at) {
        crc = table[0][(crc ^ *at) & 0xff] ^ crc >> 8;
    }
    return ~crc;
}

[[noreturn]] static void fail_with(const std::string & text) {
    throw headkv_error(HEADKV_ERR_SESSION, text);
}

static void require_not(const std::atomic<bool> & cancelled) {
    if (cancelled) {
        throw headkv_error(HEADKV_ERR_CANCELLED, "cancelled");
    }
}

//
// headkv_session_writer
//

// the permissions of the session that there is; 0 for none
static mode_t require_target(const std::string & path) {
    if (path.empty() || path.back() == '/') {
        fail_with("'" + path + "' is no name for a file");
    }
    struct stat st;
    if (stat(path.c_str(), &st) != 0) {
        if (errno != ENOENT) {
            fail_with(path + " cannot be written: " + strerror(errno));
        }
        return 0;
    }
    if (!S_ISREG(st.st_mode)) {
        fail_with(path + " is not a file: give another name");
    }
    if (st.st_size > 0) {
        char found[sizeof(magic)] = {};
        const headkv_file_ptr file(fopen(path.c_str(), "rbe"), fclose);
        if (!file || fread(found, 1, sizeof(found), file.get()) != sizeof(found) ||
            memcmp(found, magic, sizeof(magic)) != 0) {
            fail_with(path + " is another file, not a session: it stays as it is");
        }
    }
    return st.st_mode & 07777;
}

headkv_session_writer::headkv_session_writer(const char * path, const std::atomic<bool> & cancelled)
    : path(path),
      cancelled(cancelled) {
    require_not(cancelled);
    const mode_t mode = require_target(this->path);
    if (!file.open(headkv_place_of(this->path), mode)) {
        fail();
    }

    start_of_file start = {};
    memcpy(start.magic, magic, sizeof(magic));
    start.version = version;
    write(&start, sizeof(start));
}

void headkv_session_writer::fail() const {
    fail_with(path + " cannot be written: " + strerror(errno));
}

void headkv_session_writer::section(const char * name, const void * data, size_t size) {
    begin(name, size);
    write(data, size);
    end();
}

void headkv_session_writer::begin(const char * name, uint64_t size) {
    start_of_section start = {};
    memcpy(start.name, name, std::min(strlen(name), sizeof(start.name)));
    start.size = size;
    crc        = 0;
    write(&start, sizeof(start));
}

void headkv_session_writer::write(const void * data, size_t size) {
    require_not(cancelled);
    if (size > 0 && fwrite(data, 1, size, file.get()) != size) {
        fail();
    }
    crc = headkv_crc32(data, size, crc);
}

void headkv_session_writer::end() {
    if (fwrite(&crc, sizeof(crc), 1, file.get()) != 1) {
        fail();
    }
}

void headkv_session_writer::commit() {
    require_not(cancelled);
    if (!file.commit()) {
        fail();
    }
}

//
// headkv_session_reader
//

void headkv_session_reader::fail(const std::string & what) const {
    fail_with("the session " + path + " " + what);
}

void headkv_session_reader::require_not_cancelled() const {
    if (cancelled) {
        require_not(*cancelled);
    }
}

headkv_session_reader::headkv_session_reader(const char * path, const std::vector<std::string> & names)
    : path(path),
      file(nullptr, fclose) {
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a FIFO would wait for a writer
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || !(file = headkv_file_ptr(fdopen(fd, "rb"), fclose))) {
        const int reason = errno;
        if (fd >= 0) {
            close(fd);
        }
        fail_with("the session '" + this->path + "' cannot be opened: " + strerror(reason));
    }
    if (!S_ISREG(st.st_mode)) {
        fail("is not a file");
    }
    const uint64_t n_file = st.st_size;
    start_of_file first   = {};
    if (n_file >= sizeof(first)) {
        get(&first, sizeof(first));
    }
    if (memcmp(first.magic, magic, sizeof(magic)) != 0) {
        fail("is damaged or another file: it does not begin as a session does");
    }
    if (first.version != version) {
        fail(format("has format %u, and this version of headkv-local reads %u", first.version, version));
    }

    size_t next = 0;
    for (uint64_t at = sizeof(first); at < n_file;) {
        if (n_file - at < sizeof(start_of_section)) {
            fail("is damaged: it has been cut short");
        }
        start_of_section start;
        seek(at);
        get(&start, sizeof(start));
        const std::string name(start.name, strnlen(start.name, sizeof(start.name)));
        const auto found = std::find(names.begin() + next, names.end(), name);
        if (found == names.end()) {
            fail("is damaged: there is a section that is unknown, or not in its place");
        }
        next                = found - names.begin() + 1;
        const uint64_t rest = n_file - at - sizeof(start);
        if (rest < sizeof(crc) || start.size > rest - sizeof(crc)) {
            fail("is damaged: it has been cut short");
        }
        sections[name]  = { at, start.size, false };
        at             += sizeof(start) + start.size + sizeof(crc);
    }
}

void headkv_session_reader::get(void * data, size_t size) {
    if (size > 0 && fread(data, 1, size, file.get()) != size) {
        fail(ferror(file.get()) ? format("cannot be read: %s", strerror(errno)) : "is damaged: it has been cut short");
    }
}

void headkv_session_reader::seek(uint64_t offset) {
    if (fseeko(file.get(), (off_t) offset, SEEK_SET) != 0) {
        fail(format("cannot be read: %s", strerror(errno)));
    }
}

uint64_t headkv_session_reader::size(const std::string & name) const {
    const auto it = sections.find(name);
    return it == sections.end() ? 0 : it->second.size;
}

void headkv_session_reader::begin(const std::string & name) {
    start_of_section start;
    seek(sections.at(name).at);
    get(&start, sizeof(start));
    current = name;
    left    = sections.at(name).size;
    crc     = headkv_crc32(&start, sizeof(start));
}

void headkv_session_reader::fill(void * data, size_t size) {
    require_not_cancelled();
    if (size > left) {
        fail("has a section '" + current + "' of another size than it must be");
    }
    get(data, size);
    left -= size;
    crc   = headkv_crc32(data, size, crc);
}

void headkv_session_reader::end() {
    if (left > 0) {
        fail("has a section '" + current + "' of another size than it must be");
    }
    uint32_t found;
    get(&found, sizeof(found));
    if (found != crc) {
        fail("is damaged: the checksum of its section '" + current + "' is wrong");
    }
}

std::vector<uint8_t> headkv_session_reader::read(const std::string & name) {
    std::vector<uint8_t> res(size(name));
    if (has(name)) {
        begin(name);
        fill(res.data(), res.size());
        end();
    }
    return res;
}

void headkv_session_reader::verify() {
    for (const auto & [name, place] : sections) {
        verify(name);
    }
}

void headkv_session_reader::verify(const std::string & name) {
    if (sections.at(name).is_sound) {
        return;
    }
    begin(name);
    std::vector<uint8_t> piece(std::min<uint64_t>(left, headkv_session_piece));
    while (left > 0) {
        fill(piece.data(), std::min<uint64_t>(left, piece.size()));
    }
    end();
    sections.at(name).is_sound = true;
}

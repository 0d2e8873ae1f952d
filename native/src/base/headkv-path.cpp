#include "base/headkv-path.h"

#include <filesystem>

std::string headkv_place_of(const std::string & path) {
    namespace fs    = std::filesystem;
    const int n_max = 40; // as the kernel; it refuses what is still a link then
    std::error_code error;
    fs::path res = fs::absolute(path, error);
    if (error) { // in a folder that is gone: who opens it says why that fails
        return path;
    }
    for (int i = 0; i < n_max && fs::is_symlink(fs::symlink_status(res, error)); ++i) {
        res = res.parent_path() / fs::read_symlink(res, error); // an absolute one takes the place of all of it
    }
    return res.string();
}

#pragma once

#include <string>

// Where a file of that name is, or would be, whatever becomes of links and of the folder that the process is in. Links
// stay: what they lead to is meant.
std::string headkv_place_of(const std::string & path);

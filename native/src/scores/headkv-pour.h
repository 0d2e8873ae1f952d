#pragma once

#include <cstdint>
#include <vector>

// How entries are shared out among KV heads. Pure.

// pool in proportion to weights, at most room each: water-filling
std::vector<double> headkv_pour(double pool, const std::vector<double> & weights, double room);

// Integers of at most `most` with the sum total: rounded down, then one more for the largest remainders. Ties go to the
// lower head, so that the same budget gives the same caps everywhere.
std::vector<int32_t> headkv_round(std::vector<double> exact, int64_t total, int32_t most);

#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// What a regular expression is compiled to (headkv-regex-compile.cpp) and what is run on a text (headkv-regex.cpp).

// characters, as ranges with both ends
class headkv_char_set {
public:
    void add(char32_t first, char32_t last) { ranges.emplace_back(first, last); }

    void add(const headkv_char_set & other) { ranges.insert(ranges.end(), other.ranges.begin(), other.ranges.end()); }

    // sorted, so that has() may be asked
    void finish(bool negated) {
        std::sort(ranges.begin(), ranges.end());
        std::vector<std::pair<char32_t, char32_t>> merged, gaps;
        char32_t free = 0; // the first character beyond all ranges so far
        for (const auto & [first, last] : ranges) {
            if (merged.empty() || first > free) {
                if (first > free) {
                    gaps.emplace_back(free, first - 1);
                }
                merged.emplace_back(first, last);
            } else {
                merged.back().second = std::max(merged.back().second, last);
            }
            free = merged.back().second + 1;
        }
        gaps.emplace_back(free, last_char);
        ranges = std::move(negated ? gaps : merged);
    }

    bool has(char32_t c) const {
        const auto beyond = std::upper_bound(ranges.begin(), ranges.end(), c,
                                             [](char32_t x, const auto & range) { return x < range.first; });
        return beyond != ranges.begin() && c <= (beyond - 1)->second;
    }

private:
    static constexpr char32_t last_char = 0xFFFFFFFE;

    std::vector<std::pair<char32_t, char32_t>> ranges;
};

enum class headkv_regex_op {
    set,       // take a character of sets[x]
    split,     // go on at x, and if that fails at y; `slot`: its number among the splits
    jump,      // go on at x
    look,      // go on if looks[x] matches from here; negated: if it does not
    word_edge, // go on where a word begins or ends; negated: elsewhere
    begin,     // go on at the begin of the text
    end,       // go on at its end
    match,
};

struct headkv_regex_instruction {
    headkv_regex_op op;
    size_t x     = 0;
    size_t y     = 0;
    size_t slot  = 0;
    bool negated = false;
};

struct headkv_regex_program {
    std::vector<headkv_regex_instruction> code;
    std::vector<headkv_char_set> sets;
    std::vector<std::unique_ptr<headkv_regex_program>> looks;
    size_t n_splits = 0;
};

// throws std::runtime_error
std::unique_ptr<headkv_regex_program> headkv_regex_compile(const std::u32string & pattern);

// a character of \w, as std::regex has it in the C locale
inline bool headkv_in_word(char32_t c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
}

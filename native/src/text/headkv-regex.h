#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

// The regular expressions of tokenizers, without recursion over the text.
//
// llama.cpp splits text with std::regex, which calls itself once per character of a match: some ten thousand letters
// or blanks without a break overflow the stack and end the process. This matcher keeps what it has still to try in a
// vector and remembers where it failed, so memory and time grow with the text alone. What matches is the same:
// ECMAScript's rules (the first alternative that leads to a match, longest first), classes as in the C locale; no
// captures, no backreferences.
class headkv_regex {
public:
    // throws std::runtime_error for what is no regular expression, or uses what no tokenizer does
    explicit headkv_regex(const std::u32string & pattern);
    ~headkv_regex();

    // As std::regex_iterator over each of the parts of a text: the lengths of what matches and of what lies between.
    //   parts: lengths of the parts, which add up to the text's
    std::vector<size_t> split(const std::u32string & text, const std::vector<size_t> & parts) const;

private:
    std::unique_ptr<const struct headkv_regex_program> program;
};

// for llama.cpp's unicode.cpp, which has text and expression in bytes or in wide characters
template <typename CharT>
std::vector<size_t> headkv_regex_split(const std::basic_string<CharT> & text, const std::basic_string<CharT> & pattern,
                                       const std::vector<size_t> & parts) {
    const auto widened = [](const std::basic_string<CharT> & from) {
        std::u32string res(from.size(), 0);
        for (size_t i = 0; i < from.size(); ++i) {
            res[i] = sizeof(CharT) == 1 ? (unsigned char) from[i] : (char32_t) from[i];
        }
        return res;
    };
    return headkv_regex(widened(pattern)).split(widened(text), parts);
}

// headkv_regex against std::regex: every expression of llama.cpp's tokenizers, on random text that std::regex survives,
// and runs of characters that it does not.

#include "text/headkv-regex.h"

#include <cstdio>
#include <fstream>
#include <random>
#include <regex>
#include <sstream>

static int n_failed   = 0;
static int n_compared = 0;

static void check(bool ok, const std::string & what) {
    if (!ok) {
        ++n_failed;
        fprintf(stderr, "FAILED: %s\n", what.c_str());
    }
}

template <typename CharT>
static std::vector<size_t> split_by_std(const std::basic_string<CharT> & text, const std::basic_string<CharT> & pattern,
                                        const std::vector<size_t> & parts) {
    const std::basic_regex<CharT> regex(pattern, std::regex_constants::optimize | std::regex_constants::nosubs);

    std::vector<size_t> res;
    auto begin = text.cbegin();
    for (const size_t part : parts) {
        std::ptrdiff_t done = 0;
        for (std::regex_iterator<decltype(begin)> it(begin, begin + part, regex), end; it != end; ++it) {
            if (it->position() > done) {
                res.push_back(it->position() - done);
            }
            res.push_back(it->length());
            done = it->position() + it->length();
        }
        if (done < (std::ptrdiff_t) part) {
            res.push_back(part - done);
        }
        begin += part;
    }
    return res;
}

// whether std::regex is asked too
static bool compare = true;

template <typename CharT>
static std::vector<size_t> both(const std::basic_string<CharT> & text, const std::basic_string<CharT> & pattern,
                                const std::vector<size_t> & parts) {
    const auto found = headkv_regex_split(text, pattern, parts);
    if (compare) {
        ++n_compared;
        check(found == split_by_std(text, pattern, parts),
              "splits of expression " + std::string(pattern.begin(), pattern.end()));
    }
    return found;
}

// upstream's own preparation of text and expressions, with the matcher under test in both places
#define headkv_regex_split both
#include "unicode.cpp"
#undef headkv_regex_split

// The lists of expressions in llama-vocab.cpp: `regex_exprs = { "...", ... };`
static std::vector<std::vector<std::string>> expressions() {
    std::ifstream file(HEADKV_LLAMA_VOCAB);
    std::stringstream whole;
    whole << file.rdbuf();
    const std::string source = whole.str();

    std::vector<std::vector<std::string>> res;
    const std::string mark = "regex_exprs = {";
    for (size_t at = source.find(mark); at != std::string::npos; at = source.find(mark, at)) {
        res.emplace_back();
        for (at += mark.size(); source[at] != '}'; ++at) {
            if (source.compare(at, 2, "//") == 0) {
                at = source.find('\n', at);
            } else if (source[at] == '"') {
                std::string text;
                for (++at; source[at] != '"'; ++at) {
                    const char c  = source[at];
                    text         += c != '\\'             ? c
                                    : source[++at] == 'n' ? '\n'
                                    : source[at] == 'r'   ? '\r'
                                    : source[at] == 't'   ? '\t'
                                                          : source[at];
                }
                res.back().push_back(text);
            }
        }
    }
    return res;
}

static std::string random_text(std::mt19937 & rng) {
    static const std::vector<std::string> pieces = {
        "a",         "b",      "Z",      "Q",     "re",    "'s",         "'LL",     "'",      " ",
        "  ",        "\n",     "\r\n",   "\t",    "1",     "23",         "4567890", ".",      "...",
        "!",         "(",      "|",      "_",     "-",     "/",          "$",       "+",      "<sentinel:7>",
        "IMGIMGABZ", "é",      "É",      "ß",     "ǅ",     "ʰ",          "中",      "文字",   "か",
        "カ",        "한",     "ᄀ",     "ไทย",   "។",     "،",          "。",      "…",      "“",
        "́",          "\u0903", "²",      "Ⅷ",     "٣",     "€",          "😀",      "\u00a0", "\u3000",
        "\u0085",    "\u200b", "straße", "Hello", "world", "HTTPServer", "x=1;",    "    ",   "µ",
        "\u2581",
    };
    std::string res;
    for (size_t n = rng() % 60; n > 0; --n) {
        const auto & piece = pieces[rng() % pieces.size()];
        for (size_t times = rng() % 8 == 0 ? rng() % 40 : 1; times > 0; --times) {
            res += piece;
        }
    }
    return res;
}

static void same_as_std(const std::vector<std::vector<std::string>> & lists) {
    std::mt19937 rng(1);
    for (const auto & list : lists) {
        for (int i = 0; i < 150; ++i) {
            const std::string text = random_text(rng) + "."; // no tokenizer is asked to split nothing
            std::string joined;
            for (const auto & word : unicode_regex_split(text, list, false)) {
                joined += word;
            }
            check(joined == text, "the words make up the text");
        }
    }
}

// Small expressions of every kind that is supported, on all texts over a few letters.
static void same_as_std_by_kind() {
    for (const std::string pattern : { "a*?b",     "a+?",         "(a|ab)(c|bc)?", "(a*){2}", "(a|b*){1,2}c",
                                       "a{2}",     "a{2,}",       "a{1,2}?b",      "^a",      "b$",
                                       "\\bab\\b", "a\\B",        "[^a]",          ".",       "(?=ab)a",
                                       "(?!ab)a.", "(?=(a|b)+c)", "((?=a)[^b])*c", "",        "a|",
                                       "(?:)",     "[a-]b" }) {
        for (int n = 0; n <= 6; ++n) {
            for (int code = 0; code < 1 << (2 * n); ++code) {
                std::string text;
                for (int i = 0; i < n; ++i) {
                    text += "abc\n"[code >> 2 * i & 3];
                }
                const size_t cut = n > 2 ? 2 : 0;
                both(text, pattern, { cut, text.size() - cut });
            }
        }
    }
}

static void long_runs(const std::vector<std::vector<std::string>> & lists) {
    compare = false;
    for (const auto & list : lists) {
        for (const std::string run : { "A", "a", " ", "\n", "7", "中", "é", "-", "\t ", "aB", "\u00a0", "e\u0301" }) {
            std::string text;
            while (text.size() < 300000) {
                text += run;
            }
            size_t size = 0;
            for (const auto & word : unicode_regex_split(text + "!", list, false)) {
                size += word.size();
            }
            check(size == text.size() + 1, "a long run is split");
        }
    }
}

static void refusals() {
    for (const std::u32string pattern : { U"(", U")", U"[a", U"[b-a]", U"a{2", U"a{3,2}", U"a{100000}", U"*", U"\\p{L}",
                                          U"\\1", U"[[:alpha:]]", U"a\\", U"(a*)*", U"(a?b*)+", U"((?=a)|b){1,}" }) {
        bool refused = false;
        try {
            headkv_regex regex(pattern);
        } catch (const std::runtime_error &) {
            refused = true;
        }
        check(refused, "refused: " + std::string(pattern.begin(), pattern.end()));
    }
}

int main() {
    const auto lists = expressions();
    check(lists.size() > 30, "the expressions are found");

    same_as_std_by_kind();
    same_as_std(lists);
    long_runs(lists);
    refusals();

    printf("%zu lists of expressions, %d splits compared with std::regex, %d failed\n", lists.size(), n_compared,
           n_failed);
    return n_failed > 0;
}

#include "text/headkv-regex-program.h"

#include <stdexcept>

using op = headkv_regex_op;

static constexpr size_t no_limit   = SIZE_MAX;
static constexpr size_t repeat_max = 1000;

namespace {

// A node writes itself into a program, as often as it is repeated.
struct node {
    virtual ~node()                                     = default;
    virtual void emit(headkv_regex_program & dst) const = 0;

    // whether it may match without taking a character
    virtual bool may_be_empty() const { return true; }
};

using node_ptr = std::unique_ptr<node>;

size_t put(headkv_regex_program & dst, op what, size_t x = 0, bool negated = false) {
    dst.code.push_back({ what, x, 0, what == op::split ? dst.n_splits++ : 0, negated });
    return dst.code.size() - 1;
}

struct set_node : node {
    headkv_char_set set;

    void emit(headkv_regex_program & dst) const override {
        dst.sets.push_back(set);
        put(dst, op::set, dst.sets.size() - 1);
    }

    bool may_be_empty() const override { return false; }
};

struct edge_node : node {
    op what;
    bool negated;

    edge_node(op what, bool negated) : what(what), negated(negated) {}

    void emit(headkv_regex_program & dst) const override { put(dst, what, 0, negated); }
};

struct look_node : node {
    node_ptr inner;
    bool negated;

    look_node(node_ptr inner, bool negated) : inner(std::move(inner)), negated(negated) {}

    void emit(headkv_regex_program & dst) const override {
        dst.looks.push_back(std::make_unique<headkv_regex_program>());
        inner->emit(*dst.looks.back());
        put(*dst.looks.back(), op::match);
        put(dst, op::look, dst.looks.size() - 1, negated);
    }
};

struct sequence_node : node {
    std::vector<node_ptr> parts;

    void emit(headkv_regex_program & dst) const override {
        for (const auto & part : parts) {
            part->emit(dst);
        }
    }

    bool may_be_empty() const override {
        return std::all_of(parts.begin(), parts.end(), [](const auto & part) { return part->may_be_empty(); });
    }
};

struct alternatives_node : node {
    std::vector<node_ptr> choices;

    void emit(headkv_regex_program & dst) const override {
        std::vector<size_t> jumps;
        for (size_t i = 0; i < choices.size(); ++i) {
            const bool last    = i + 1 == choices.size();
            const size_t split = last ? 0 : put(dst, op::split, dst.code.size() + 1);
            choices[i]->emit(dst);
            if (!last) {
                jumps.push_back(put(dst, op::jump));
                dst.code[split].y = dst.code.size();
            }
        }
        for (const size_t jump : jumps) {
            dst.code[jump].x = dst.code.size();
        }
    }

    bool may_be_empty() const override {
        return std::any_of(choices.begin(), choices.end(), [](const auto & choice) { return choice->may_be_empty(); });
    }
};

struct repeat_node : node {
    node_ptr inner;
    size_t least, most;
    bool greedy;

    repeat_node(node_ptr inner, size_t least, size_t most, bool greedy)
        : inner(std::move(inner)),
          least(least),
          most(most),
          greedy(greedy) {}

    void emit(headkv_regex_program & dst) const override {
        for (size_t i = 0; i < least; ++i) {
            inner->emit(dst);
        }
        std::vector<size_t> splits;
        for (size_t i = least; i < (most == no_limit ? least + 1 : most); ++i) {
            splits.push_back(put(dst, op::split));
            inner->emit(dst);
        }
        if (most == no_limit) {
            put(dst, op::jump, splits.back());
        }
        for (const size_t split : splits) {
            dst.code[split].x = greedy ? split + 1 : dst.code.size();
            dst.code[split].y = greedy ? dst.code.size() : split + 1;
        }
    }

    bool may_be_empty() const override { return least == 0 || inner->may_be_empty(); }
};

class parser {
public:
    explicit parser(const std::u32string & pattern) : pattern(pattern) {}

    node_ptr parse() {
        node_ptr res = alternatives();
        if (at < pattern.size()) {
            fail("')' without '('");
        }
        return res;
    }

private:
    [[noreturn]] void fail(const char * what) const {
        throw std::runtime_error("regular expression, character " + std::to_string(at) + ": " + what);
    }

    bool take(const char32_t * text) {
        const size_t n    = std::char_traits<char32_t>::length(text);
        const bool found  = pattern.compare(at, n, text) == 0;
        at               += found ? n : 0;
        return found;
    }

    char32_t next() {
        if (at == pattern.size()) {
            fail("it ends too early");
        }
        return pattern[at++];
    }

    node_ptr alternatives() {
        auto res = std::make_unique<alternatives_node>();
        do {
            res->choices.push_back(sequence());
        } while (take(U"|"));
        return res;
    }

    node_ptr sequence() {
        auto res = std::make_unique<sequence_node>();
        while (at < pattern.size() && pattern[at] != '|' && pattern[at] != ')') {
            res->parts.push_back(repeated(atom()));
        }
        return res;
    }

    node_ptr repeated(node_ptr inner) {
        size_t least = 0, most = no_limit;
        if (take(U"+")) {
            least = 1;
        } else if (take(U"?")) {
            most = 1;
        } else if (take(U"{")) {
            least = number();
            most  = !take(U",") ? least : (at < pattern.size() && pattern[at] == '}') ? no_limit : number();
            if (!take(U"}") || most < least) {
                fail("a repetition is {n}, {n,} or {n,m}");
            }
        } else if (!take(U"*")) {
            return inner;
        }
        if (most == no_limit && inner->may_be_empty()) { // a loop at one place: the matcher would have to notice
            fail("what may be empty cannot be repeated without end");
        }
        const bool greedy = !take(U"?");
        return std::make_unique<repeat_node>(std::move(inner), least, most, greedy);
    }

    size_t number() {
        size_t res         = 0;
        const size_t begin = at;
        while (at < pattern.size() && pattern[at] >= '0' && pattern[at] <= '9') {
            res = 10 * res + (pattern[at++] - '0');
            if (res > repeat_max) {
                fail("so many repetitions are not supported");
            }
        }
        if (at == begin) {
            fail("a number is missing");
        }
        return res;
    }

    node_ptr atom() {
        if (take(U"(?=")) {
            return look(false);
        }
        if (take(U"(?!")) {
            return look(true);
        }
        if (take(U"(?:") || take(U"(")) {
            return closed(alternatives());
        }
        if (take(U"\\b")) {
            return std::make_unique<edge_node>(op::word_edge, false);
        }
        if (take(U"\\B")) {
            return std::make_unique<edge_node>(op::word_edge, true);
        }
        if (take(U"^")) {
            return std::make_unique<edge_node>(op::begin, false);
        }
        if (take(U"$")) {
            return std::make_unique<edge_node>(op::end, false);
        }
        auto res = std::make_unique<set_node>();
        if (take(U"[")) {
            bracket(res->set);
        } else if (take(U".")) {
            res->set.add('\n', '\n');
            res->set.add('\r', '\r');
            res->set.finish(true);
        } else {
            if (at < pattern.size() && std::u32string(U"*+?{}]").find(pattern[at]) != std::u32string::npos) {
                fail("this character needs a '\\' before it");
            }
            member(res->set);
            res->set.finish(false);
        }
        return res;
    }

    node_ptr look(bool negated) { return std::make_unique<look_node>(closed(alternatives()), negated); }

    node_ptr closed(node_ptr inner) {
        if (!take(U")")) {
            fail("')' is missing");
        }
        return inner;
    }

    void bracket(headkv_char_set & dst) {
        const bool negated = take(U"^");
        while (!take(U"]")) {
            if (take(U"[:") || take(U"[.") || take(U"[=")) {
                fail("named classes are not supported");
            }
            const size_t begin   = at;
            const char32_t first = member(dst);
            const bool range     = at + 1 < pattern.size() && pattern[at] == '-' && pattern[at + 1] != ']';
            if (!range) {
                continue;
            }
            ++at;
            const char32_t last = member(dst);
            if (first == no_char || last == no_char || last < first) {
                at = begin;
                fail("this is no range");
            }
            dst.add(first, last);
        }
        dst.finish(negated);
    }

    // add a character or a class as \s; which character it was
    char32_t member(headkv_char_set & dst) {
        char32_t c = next();
        if (c == '\\') {
            c = next();
            switch (c) {
            case 'd':
            case 'D':
            case 's':
            case 'S':
            case 'w':
            case 'W':
                dst.add(class_of(c));
                return no_char;
            case 'f':
                c = '\f';
                break;
            case 'n':
                c = '\n';
                break;
            case 'r':
                c = '\r';
                break;
            case 't':
                c = '\t';
                break;
            case 'v':
                c = '\v';
                break;
            default:
                if (headkv_in_word(c)) { // \x41, \cA, \p{L}, \1 and the like
                    fail("this escape is not supported");
                }
            }
        }
        dst.add(c, c);
        return c;
    }

    static headkv_char_set class_of(char32_t letter) {
        headkv_char_set res;
        switch (letter) {
        case 'd':
        case 'D':
            res.add('0', '9');
            break;
        case 's':
        case 'S':
            res.add('\t', '\r');
            res.add(' ', ' ');
            break;
        default:
            for (char32_t c = 0; c < 128; ++c) {
                if (headkv_in_word(c)) {
                    res.add(c, c);
                }
            }
        }
        res.finish(letter < 'a');
        return res;
    }

    static constexpr char32_t no_char = 0xFFFFFFFF;

    const std::u32string & pattern;
    size_t at = 0;
};

} // namespace

std::unique_ptr<headkv_regex_program> headkv_regex_compile(const std::u32string & pattern) {
    auto res = std::make_unique<headkv_regex_program>();
    parser(pattern).parse()->emit(*res);
    put(*res, op::match);
    return res;
}

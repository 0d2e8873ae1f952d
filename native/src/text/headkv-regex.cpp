#include "text/headkv-regex-program.h"
#include "text/headkv-regex.h"

#include <cstdint>

using op = headkv_regex_op;

static constexpr size_t no_match = SIZE_MAX;

// Runs a program on a text. Whether the rest matches depends on the instruction and the position alone, since nothing
// is captured: what has failed at a split is not tried again, and a lookahead remembers what has matched as well.
class headkv_regex_matcher {
public:
    // the characters [0, size) of a part of a text
    headkv_regex_matcher(const headkv_regex_program & program, const char32_t * text, size_t size, bool looks_ahead)
        : program(program),
          text(text),
          size(size),
          n_words((program.n_splits + 63) / 64),
          tried((size + 1) * n_words),
          matched(looks_ahead ? tried.size() : 0) {
        for (const auto & look : program.looks) {
            looks.emplace_back(*look, text, size, true);
        }
    }

    // where the match that begins at `start` ends, no_match if there is none; a lookahead says no more than that it is
    // one
    size_t match(size_t start, bool not_empty = false) {
        path.clear();
        pending.assign(1, { 0, start, 0 });
        while (!pending.empty()) {
            state now = pending.back();
            pending.pop_back();
            path.resize(now.n_path);
            while (program.code[now.pc].op != op::match && step(now)) {}
            if (program.code[now.pc].op == op::match && !(not_empty && now.pos == start)) {
                for (const auto & bit : path) { // these have not failed
                    tried[bit.word] &= ~bit.mask;
                    if (!matched.empty()) {
                        matched[bit.word] |= bit.mask;
                    }
                }
                return now.pos;
            }
        }
        return no_match;
    }

private:
    struct state {
        size_t pc;
        size_t pos;
        size_t n_path; // splits on the way to here
    };

    struct split_bit {
        size_t word;
        uint64_t mask;
    };

    // false: there is no way on from here
    bool step(state & now) {
        const auto & todo = program.code[now.pc];
        switch (todo.op) {
        case op::set:
            if (now.pos == size || !program.sets[todo.x].has(text[now.pos])) {
                return false;
            }
            ++now.pos;
            break;
        case op::split: {
            const split_bit bit = { now.pos * n_words + todo.slot / 64, uint64_t(1) << todo.slot % 64 };
            if (!matched.empty() && matched[bit.word] & bit.mask) {
                now.pc = program.code.size() - 1;
                return true;
            }
            if (tried[bit.word] & bit.mask) {
                return false;
            }
            tried[bit.word] |= bit.mask;
            path.push_back(bit);
            pending.push_back({ todo.y, now.pos, path.size() });
            now.pc = todo.x;
            return true;
        }
        case op::jump:
            now.pc = todo.x;
            return true;
        case op::look:
            if ((looks[todo.x].match(now.pos) != no_match) == todo.negated) {
                return false;
            }
            break;
        case op::word_edge:
            if (word_edge(now.pos) == todo.negated) {
                return false;
            }
            break;
        case op::begin:
            if (now.pos != 0) {
                return false;
            }
            break;
        case op::end:
            if (now.pos != size) {
                return false;
            }
            break;
        case op::match:
            return false;
        }
        ++now.pc;
        return true;
    }

    bool word_edge(size_t pos) const {
        const bool before = pos > 0 && headkv_in_word(text[pos - 1]);
        const bool here   = pos < size && headkv_in_word(text[pos]);
        return before != here;
    }

    const headkv_regex_program & program;
    const char32_t * text;
    const size_t size;

    std::vector<headkv_regex_matcher> looks;
    std::vector<state> pending;
    std::vector<split_bit> path;   // splits between the start and here
    const size_t n_words;          // of 64 splits
    std::vector<uint64_t> tried;   // [size + 1][n_words]: failed, or on the path
    std::vector<uint64_t> matched; // [size + 1][n_words] of a lookahead, else empty
};

headkv_regex::headkv_regex(const std::u32string & pattern) : program(headkv_regex_compile(pattern)) {}

headkv_regex::~headkv_regex() = default;

std::vector<size_t> headkv_regex::split(const std::u32string & text, const std::vector<size_t> & parts) const {
    std::vector<size_t> res;
    res.reserve(parts.size());
    size_t begin = 0;
    for (const size_t size : parts) {
        headkv_regex_matcher matcher(*program, text.data() + begin, size, false);

        size_t done    = 0; // characters whose lengths are in res
        const auto add = [&](size_t from, size_t to) {
            if (from > done) {
                res.push_back(from - done);
            }
            res.push_back(to - from);
            done = to;
        };
        for (size_t pos = 0; pos <= size;) {
            const size_t end = matcher.match(pos);
            if (end == no_match) {
                ++pos;
                continue;
            }
            add(pos, end);
            if (end > pos) {
                pos = end;
                continue;
            }
            // after an empty match std::regex_iterator looks for another one, not empty, at the same place
            const size_t longer = pos < size ? matcher.match(pos, true) : no_match;
            if (longer != no_match) {
                add(pos, longer);
            }
            pos = longer != no_match ? longer : pos + 1;
        }
        if (done < size) {
            res.push_back(size - done);
        }
        begin += size;
    }
    return res;
}

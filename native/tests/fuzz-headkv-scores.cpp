// Feeds damaged GGUF files to the reader of head scores. With clang it is a libFuzzer target; with other compilers
// it mutates valid files by itself:
//
//   fuzz-headkv-scores [runs] [seed]   that many mutants, 20,000 by default
//   fuzz-headkv-scores FILE...         what the reader says of each file
//
// Anything but a result that keeps what headkv-scores.h promises, or a headkv_error, ends the process. So does any
// line that gguf.h logs: what it would complain of is to be found before.

#include "base/headkv-error.h"
#include "scores/headkv-scores.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

typedef std::vector<uint8_t> bytes;

static void require(bool ok, const char * what) {
    if (!ok) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void fail_on_log(ggml_log_level, const char * text, void *) {
    fprintf(stderr, "%s", text);
    require(false, "gguf.h has nothing to complain of");
}

static void check(const headkv_scores & s) {
    require(s.n_layer > 0 && s.n_head > 0 && s.n_head_kv > 0 && s.n_head % s.n_head_kv == 0, "a shape");
    require(s.scores.size() == (size_t) s.n_layer * s.n_head, "one score per head");
    double sum = 0.0;
    for (const float x : s.scores) {
        require(std::isfinite(x) && x >= 0.0f, "finite scores, none negative");
        sum += x;
    }
    require(sum > 0.0, "not all scores are zero");
    const size_t n_points = s.curves.shares.size();
    require(s.curves.losses.size() == (size_t) s.n_layer * s.n_head_kv * n_points, "a curve per KV head");
    require(n_points == 0 || (n_points <= headkv_n_points_max && headkv_ascend(s.curves.shares.data(), n_points)),
            "shares from 0 to 1");
    for (const float x : s.curves.losses) {
        require(std::isfinite(x), "finite losses");
    }
    require(s.beta == -1.0f || (std::isfinite(s.beta) && s.beta > 1.0f), "beta");
    require(s.kernel == -1 || s.kernel % 2 == 1, "an odd kernel");
    require(s.window == -1 || s.window >= 1, "window");
    require(s.sinks >= -1, "sinks");
    require(!s.texts.empty() && s.texts[0].first == "headkv.method", "a method");
    for (const auto & text : s.texts) {
        require(!text.second.empty() && text.second.size() <= 4096, "texts of bounded length");
    }
}

template <typename F>
static int32_t code_of(F && f) {
    try {
        f();
        return HEADKV_OK;
    } catch (const headkv_error & err) {
        require(err.what()[0] != '\0' && !strchr(err.what(), '\n'), "one line per error");
        return err.code;
    }
}

// code of the scores
static int32_t run_one(const uint8_t * data, size_t size) {
    ggml_log_set(fail_on_log, nullptr);

    // memory of exactly this size, so that the address sanitizer sees a byte too many
    const std::unique_ptr<uint8_t[]> copy(new uint8_t[size]);
    if (size > 0) {
        memcpy(copy.get(), data, size);
    }
    code_of([&]() { require(headkv_model_id(copy.get(), size).rfind("fnv1a-", 0) == 0, "an id"); });
    return code_of([&]() { check(headkv_scores::load(copy.get(), size)); });
}

#ifdef HEADKV_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    run_one(data, size);
    return 0;
}

#else

//
// valid files to start from
//

struct writer {
    bytes out;

    std::vector<size_t> fields; // where lengths, types and counts stand
    std::vector<size_t> values; // where numbers stand that only we look at, and their types

    template <typename T>
    void put(T x, bool value = false) {
        (value ? values : fields).push_back(out.size());
        out.insert(out.end(), (const uint8_t *) &x, (const uint8_t *) &x + sizeof(x));
    }

    void text(const std::string & s) {
        put<uint64_t>(s.size());
        out.insert(out.end(), s.begin(), s.end());
    }

    void key(const char * name, uint32_t type) {
        text(name);
        put(type);
    }

    void floats(const char * name, uint64_t n, float step) {
        key(name, 9);
        put<uint32_t>(6);
        put(n);
        for (uint64_t i = 0; i < n; ++i) {
            put((float) i * step, true);
        }
    }

    void u32(const char * name, uint32_t x) {
        text(name);
        put<uint32_t>(4, true);
        put(x, true);
    }

    void str(const char * name, const char * x) {
        key(name, 8);
        text(x);
    }
};

static writer make_file(bool all_keys, bool is_model, uint32_t n_layer, uint32_t n_head) {
    writer w;
    for (const char c : { 'G', 'G', 'U', 'F' }) {
        w.out.push_back(c);
    }
    w.put<uint32_t>(3);
    w.put<uint64_t>(is_model ? 2 : 0);
    w.put<uint64_t>(7 + (all_keys ? 9 : 0) + (is_model ? 2 : 0));

    w.str("general.architecture", is_model ? "llama" : "headkv");
    if (is_model) {
        w.u32("general.alignment", 64);
        w.key("tokenizer.ggml.tokens", 9);
        w.put<uint32_t>(8);
        w.put<uint64_t>(3);
        for (const char * token : { "a", "", "long enough to be on the heap" }) {
            w.text(token);
        }
    }
    w.u32("headkv.version", 1);
    w.str("headkv.method", "r2");
    w.u32("headkv.block_count", n_layer);
    w.u32("headkv.head_count", n_head);
    w.u32("headkv.head_count_kv", n_head / 2);
    w.floats("headkv.scores", (uint64_t) n_layer * n_head, 0.125f);
    if (all_keys) {
        w.floats("headkv.curve.shares", 3, 0.5f);
        w.floats("headkv.curve.losses", (uint64_t) n_layer * (n_head / 2) * 3, -0.125f);
        w.key("headkv.beta", 6);
        w.put(1.02f, true);
        w.u32("headkv.window", 8);
        w.u32("headkv.kernel", 13);
        w.u32("headkv.sinks", 4);
        w.str("headkv.source.model", "a model \xe2\x82\xac");
        w.u32("headkv.source.seed", 7);
        w.str("headkv.source.model_id", "fnv1a-0123456789abcdef");
    }
    if (is_model) {
        for (uint64_t i = 0; i < 2; ++i) {
            w.text(i == 0 ? "token_embd.weight" : "output.weight");
            w.put<uint32_t>(2);
            w.put<uint64_t>(32);
            w.put<uint64_t>(2);
            w.put<uint32_t>(8); // q8_0: 34 bytes per 32 values
            w.put<uint64_t>(128 * i);
        }
        w.out.resize((w.out.size() + 63) / 64 * 64 + 2 * 128, 0xa5);
    }
    return w;
}

//
// mutations
//

class mutator {
public:
    explicit mutator(uint64_t seed) : rng(seed) {}

    bytes next() {
        const writer & base = bases[below(bases.size())];

        bytes res       = base.out;
        const bool deep = below(2) == 0; // still a GGUF file
        for (size_t n = 1 + below(3); n > 0; --n) {
            if (deep) {
                change_value(res, base);
            } else {
                change(res, base);
            }
        }
        return res;
    }

private:
    std::mt19937_64 rng;

    const std::vector<writer> bases = {
        make_file(false, false, 1, 2),
        make_file(true, false, 3, 4),
        make_file(false, true, 2, 2),
        make_file(true, true, 4, 6),
    };

    size_t below(size_t n) { return (size_t) (rng() % n); }

    uint64_t odd_value() {
        static const uint64_t values[] = {
            0,
            1,
            2,
            3,
            4,
            6,
            8,
            9,
            12,
            13,
            14,
            63,
            64,
            65,
            127,
            128,
            255,
            256,
            4096,
            4097,
            0x7fff,
            0xffff,
            0x10000,
            0x7f800000,
            0xff800000,
            0x7fc00000,
            0x80000000,
            0x7fffffff,
            0xffffffff,
            1ull << 32,
            1ull << 60,
            1ull << 61,
            1ull << 62,
            INT64_MAX,
            1ull << 63,
            UINT64_MAX,
            0x3f800000ull,
            0xbf800000ull,
        };
        const uint64_t x = values[below(sizeof(values) / sizeof(*values))];
        return below(4) == 0 ? x + below(5) - 2 : x;
    }

    void change_value(bytes & b, const writer & base) {
        const size_t at = base.values[below(base.values.size())];
        if (below(3) == 0) {
            // text or name, if it is one
            const size_t near  = std::min(at + below(64), b.size() - 1);
            b[near]           ^= b[near] >= 0x20 ? 1 << below(8) : 0;
        } else {
            const uint32_t x = below(4) > 0 ? (uint32_t) odd_value() : (uint32_t) rng();
            memcpy(&b[at], &x, sizeof(x));
        }
    }

    void change(bytes & b, const writer & base) {
        if (b.empty()) {
            return;
        }
        const size_t at    = below(b.size());
        const size_t n     = 1 + below(std::min<size_t>(b.size() - at, 32));
        const size_t field = std::min(base.fields[below(base.fields.size())], b.size() - 1);
        switch (below(9)) {
        case 0: // a bit
            b[at] ^= 1 << below(8);
            break;
        case 1: // a byte
            b[at] = (uint8_t) rng();
            break;
        case 2: // a length, a type or a count; most often, they lead furthest
        case 3:
        case 4: {
            const uint64_t x = odd_value();
            memcpy(&b[field], &x, std::min<size_t>(b.size() - field, below(2) ? 4 : 8));
            break;
        }
        case 5: // the end
            b.resize(at);
            break;
        case 6: // something missing
            b.erase(b.begin() + at, b.begin() + at + n);
            break;
        case 7: // something twice
        {
            const bytes part(b.begin() + at, b.begin() + at + n);
            b.insert(b.begin() + below(b.size()), part.begin(), part.end());
            break;
        }
        default: // something out of another file
        {
            const bytes & other = bases[below(bases.size())].out;
            const size_t from   = below(other.size());
            const size_t m      = std::min({ n, other.size() - from, b.size() - at });
            std::copy(other.begin() + from, other.begin() + from + m, b.begin() + at);
        }
        }
    }
};

static int run_mutants(uint64_t n_runs, uint64_t seed) {
    std::map<int32_t, uint64_t> counts;
    mutator m(seed);
    for (uint64_t i = 0; i < n_runs; ++i) {
        const bytes b = m.next();
        counts[run_one(b.data(), b.size())]++;
    }
    printf("%llu runs, seed %llu; code of headkv.h: times\n", (unsigned long long) n_runs, (unsigned long long) seed);
    for (const auto & count : counts) {
        printf("%4d: %llu\n", count.first, (unsigned long long) count.second);
    }
    // mutants that stop at the header, or that nothing is wrong with, would prove nothing
    for (int32_t code = HEADKV_OK; code >= HEADKV_ERR_SCORES_VALUE; --code) {
        const bool expected = code == HEADKV_OK || code <= HEADKV_ERR_FILE;
        if (expected != (counts.count(code) > 0) && n_runs >= 20000) {
            printf("code %d: %s\n", code, expected ? "never seen" : "unexpected");
            return 1;
        }
    }
    return 0;
}

static int run_files(int n, char ** paths) {
    ggml_log_set(fail_on_log, nullptr);
    for (int i = 0; i < n; ++i) {
        std::string text = "fine";

        const auto keep = [&](auto && f) {
            return code_of([&]() {
                try {
                    f();
                } catch (const headkv_error & err) {
                    text = err.what();
                    throw;
                }
            });
        };
        keep([&]() { headkv_model_id(paths[i]); });
        text = "fine";

        const int32_t code = keep([&]() { check(headkv_scores::load(paths[i])); });
        printf("%4d %s: %s\n", code, paths[i], text.c_str());
    }
    return 0;
}

int main(int argc, char ** argv) {
    char * end          = nullptr;
    const uint64_t runs = argc > 1 ? strtoull(argv[1], &end, 10) : 20000;
    if (argc > 1 && (end == argv[1] || *end != '\0')) {
        return run_files(argc - 1, argv + 1);
    }
    return run_mutants(runs, argc > 2 ? strtoull(argv[2], nullptr, 10) : 1);
}

#endif

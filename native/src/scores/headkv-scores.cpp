#include "scores/headkv-scores.h"

#include "base/headkv-error.h"
#include "base/headkv-hash.h"
#include "base/headkv-utf8.h"
#include "llama-impl.h"
#include "scores/headkv-gguf.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

// More than any model has; keeps what a hostile file can make us allocate or add up within bounds.
static constexpr uint32_t n_layer_max = 4096;
static constexpr uint32_t n_head_max  = 4096;
static constexpr int32_t n_tokens_max = 1 << 20;
static constexpr size_t n_text_max    = 4096; // bytes of one text
static constexpr size_t n_name_max    = 128;  // bytes of the key of a text
static constexpr size_t n_texts_max   = 256;

static const char source_prefix[] = "headkv.source.";
static const char shares_key[]    = "headkv.curve.shares";
static const char losses_key[]    = "headkv.curve.losses";

namespace {

// typed access to the headkv.* keys; gguf's own getters abort on a wrong type, so each is checked before
class reader {
public:
    reader(const gguf_context * gguf, const std::string & name) : gguf(gguf), name(name) {}

    [[noreturn]] void fail(int32_t code, const char * key, const std::string & what) const {
        throw headkv_error(code, format("%s: %s %s", name.c_str(), key, what.c_str()));
    }

    int64_t find(const char * key) const { return gguf_find_key(gguf, key); }

    // id of a key of this type; arrays: of this element type
    int64_t require(const char * key, gguf_type type, bool array = false) const {
        const int64_t id = find(key);
        if (id < 0) {
            fail(HEADKV_ERR_SCORES_MISSING, key, "is missing");
        }
        const bool is_array   = gguf_get_kv_type(gguf, id) == GGUF_TYPE_ARRAY;
        const gguf_type found = is_array ? gguf_get_arr_type(gguf, id) : gguf_get_kv_type(gguf, id);
        if (found != type || is_array != array) {
            fail(HEADKV_ERR_SCORES_TYPE, key,
                 format("must be %s%s, not %s%s", array ? "an array of " : "", gguf_type_name(type),
                        is_array ? "an array of " : "", gguf_type_name(found)));
        }
        return id;
    }

    uint32_t get_u32(const char * key, uint32_t least, uint32_t most) const {
        const uint32_t res = gguf_get_val_u32(gguf, require(key, GGUF_TYPE_UINT32));
        if (res < least || res > most) {
            fail(HEADKV_ERR_SCORES_VALUE, key, format("must be from %u to %u, not %u", least, most, res));
        }
        return res;
    }

    std::string get_text(const char * key) const {
        const std::string res = gguf_get_val_str(gguf, require(key, GGUF_TYPE_STRING));
        if (res.empty() || res.size() > n_text_max) {
            fail(HEADKV_ERR_SCORES_LENGTH, key, format("must have 1 to %zu bytes, not %zu", n_text_max, res.size()));
        }
        if (!headkv_is_utf8(res)) {
            fail(HEADKV_ERR_SCORES_VALUE, key, "must be UTF-8");
        }
        return res;
    }

    // all headkv.source.*, numbers as decimals
    void get_source(std::vector<std::pair<std::string, std::string>> & texts) const {
        for (int64_t id = 0; id < gguf_get_n_kv(gguf); ++id) {
            const std::string key = gguf_get_key(gguf, id);
            if (key.rfind(source_prefix, 0) != 0) {
                continue;
            }
            // the key is shown from here on
            if (key.size() == strlen(source_prefix) || key.size() > n_name_max) {
                fail(HEADKV_ERR_SCORES_LENGTH, "headkv.source.*",
                     format("has a key of %zu bytes, not %zu to %zu", key.size(), sizeof(source_prefix), n_name_max));
            }
            if (!std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; })) {
                fail(HEADKV_ERR_SCORES_VALUE, "headkv.source.*", "has a key that is not printable ASCII");
            }
            if (texts.size() > n_texts_max) { // headkv.method is one of them
                fail(HEADKV_ERR_SCORES_LENGTH, "headkv.source.*", format("has more than %zu keys", n_texts_max));
            }
            if (gguf_get_kv_type(gguf, id) == GGUF_TYPE_UINT32) {
                texts.emplace_back(key, std::to_string(gguf_get_val_u32(gguf, id)));
            } else {
                texts.emplace_back(key, get_text(key.c_str()));
            }
        }
    }

    std::vector<float> get_scores(const char * key, size_t n) const {
        const auto res = get_array<float>(key, GGUF_TYPE_FLOAT32, n, "one per layer and query head");

        double sum = 0.0;
        for (size_t i = 0; i < n; ++i) {
            if (!std::isfinite(res[i]) || res[i] < 0.0f) {
                fail(HEADKV_ERR_SCORES_VALUE, key,
                     format("must be finite and not negative, value %zu is %g", i, res[i]));
            }
            sum += res[i];
        }
        if (!(sum > 0.0)) {
            fail(HEADKV_ERR_SCORES_VALUE, key, "must not be all zero");
        }
        return res;
    }

    // ascending, n of them; without the key 0, 1, ...
    std::vector<uint32_t> get_layers(const char * key, size_t n) const {
        if (find(key) < 0) {
            std::vector<uint32_t> res(n);
            std::iota(res.begin(), res.end(), 0);
            return res;
        }
        const auto res = get_array<uint32_t>(key, GGUF_TYPE_UINT32, n, "one per layer");
        for (size_t i = 0; i < n; ++i) {
            if (res[i] >= n_layer_max || (i > 0 && res[i] <= res[i - 1])) {
                fail(HEADKV_ERR_SCORES_VALUE, key,
                     format("must be ascending and below %u, value %zu is %u", n_layer_max, i, res[i]));
            }
        }
        return res;
    }

    // both keys, or neither
    headkv_curves get_curves(uint32_t n_layer, uint32_t n_head_kv) const {
        headkv_curves res;
        if (find(shares_key) < 0 && find(losses_key) < 0) {
            return res;
        }
        const size_t n_points = gguf_get_arr_n(gguf, require(shares_key, GGUF_TYPE_FLOAT32, true));
        if (n_points < 2 || n_points > headkv_n_points_max) {
            fail(HEADKV_ERR_SCORES_LENGTH, shares_key,
                 format("must have 2 to %zu values, not %zu", headkv_n_points_max, n_points));
        }
        res.shares = get_array<float>(shares_key, GGUF_TYPE_FLOAT32, n_points, "");
        if (!headkv_ascend(res.shares.data(), n_points)) {
            fail(HEADKV_ERR_SCORES_VALUE, shares_key, "must ascend from 0 to 1");
        }
        const size_t n = (size_t) n_layer * n_head_kv * n_points;
        res.losses     = get_array<float>(losses_key, GGUF_TYPE_FLOAT32, n,
                                          format("%u layers of %u KV heads with %zu each", n_layer, n_head_kv, n_points));
        const size_t i = headkv_find_not_finite(res.losses.data(), n);
        if (i < n) {
            fail(HEADKV_ERR_SCORES_VALUE, losses_key, format("must be finite, value %zu is %g", i, res.losses[i]));
        }
        return res;
    }

private:
    const gguf_context * gguf;
    const std::string & name;

    // n values of 4 bytes; what: how so many come about, for an error
    template <typename T>
    std::vector<T> get_array(const char * key, gguf_type type, size_t n, const std::string & what) const {
        const int64_t id = require(key, type, true);
        if (gguf_get_arr_n(gguf, id) != n) {
            fail(HEADKV_ERR_SCORES_LENGTH, key,
                 format("must have %zu values, %s, not %zu", n, what.c_str(), gguf_get_arr_n(gguf, id)));
        }
        std::vector<T> res(n);
        memcpy(res.data(), gguf_get_arr_data(gguf, id), n * sizeof(T));
        return res;
    }
};

} // namespace

static headkv_scores load_from(headkv_gguf_source & source) {
    const auto gguf = source.parse();
    const reader r(gguf.get(), source.get_name());

    if (r.find("headkv.version") < 0) {
        throw headkv_error(HEADKV_ERR_SCORES_ABSENT, source.get_name() + " holds no head scores");
    }
    const uint32_t version = gguf_get_val_u32(gguf.get(), r.require("headkv.version", GGUF_TYPE_UINT32));
    if (version != 1) {
        r.fail(HEADKV_ERR_SCORES_VERSION, "headkv.version", format("is %u, only 1 is known", version));
    }

    headkv_scores res;

    res.texts.emplace_back("headkv.method", r.get_text("headkv.method"));
    res.n_layer   = r.get_u32("headkv.block_count", 1, n_layer_max);
    res.n_head    = r.get_u32("headkv.head_count", 1, n_head_max);
    res.n_head_kv = r.get_u32("headkv.head_count_kv", 1, n_head_max);
    if (res.n_head % res.n_head_kv != 0) {
        r.fail(HEADKV_ERR_SCORES_VALUE, "headkv.head_count_kv",
               format("must divide the head count of %u, %u does not", res.n_head, res.n_head_kv));
    }
    res.scores = r.get_scores("headkv.scores", (size_t) res.n_layer * res.n_head);
    res.layers = r.get_layers("headkv.layers", res.n_layer);
    res.curves = r.get_curves(res.n_layer, res.n_head_kv);

    if (r.find("headkv.beta") >= 0) {
        res.beta = gguf_get_val_f32(gguf.get(), r.require("headkv.beta", GGUF_TYPE_FLOAT32));
        if (!std::isfinite(res.beta) || res.beta <= 1.0f) {
            r.fail(HEADKV_ERR_SCORES_VALUE, "headkv.beta", format("must be finite and above 1, not %g", res.beta));
        }
    }
    if (r.find("headkv.window") >= 0) {
        res.window = r.get_u32("headkv.window", 1, n_tokens_max);
    }
    if (r.find("headkv.kernel") >= 0) {
        res.kernel = r.get_u32("headkv.kernel", 1, n_tokens_max);
        if (res.kernel % 2 == 0) {
            r.fail(HEADKV_ERR_SCORES_VALUE, "headkv.kernel", format("must be odd, not %d", res.kernel));
        }
    }
    if (r.find("headkv.sinks") >= 0) {
        res.sinks = r.get_u32("headkv.sinks", 0, n_tokens_max);
    }

    r.get_source(res.texts);

    return res;
}

headkv_scores headkv_scores::load(const char * path) {
    headkv_gguf_source source(path);
    return load_from(source);
}

headkv_scores headkv_scores::load(const void * data, size_t size) {
    headkv_gguf_source source(data, size);
    return load_from(source);
}

//
// identity of a model
//

static const std::string id_prefix = "fnv1a-"; // of a model's identity, before the hash

static uint64_t hash_tensors(uint64_t hash, headkv_gguf_source & source, const gguf_context * gguf) {
    static constexpr size_t n_sample = 4096; // bytes from each end of a tensor

    std::vector<uint8_t> sample(n_sample);
    for (int64_t id = 0; id < gguf_get_n_tensors(gguf); ++id) {
        const char * name    = gguf_get_tensor_name(gguf, id);
        const int64_t * ne   = gguf_get_tensor_ne(gguf, id);
        const uint32_t type  = gguf_get_tensor_type(gguf, id);
        const size_t size    = gguf_get_tensor_size(gguf, id);
        const uint64_t start = gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, id);

        hash = headkv_hash(hash, name, strlen(name) + 1);
        hash = headkv_hash(hash, &type, sizeof(type));
        hash = headkv_hash(hash, ne, GGML_MAX_DIMS * sizeof(*ne));

        const size_t n = std::min(size, n_sample);
        for (const uint64_t offset : { start, start + (size - n) }) {
            if (source.read(offset, sample.data(), n) != n) {
                throw headkv_error(HEADKV_ERR_FILE, source.get_name() + " cannot be read");
            }
            hash = headkv_hash(hash, sample.data(), n);
        }
    }
    return hash;
}

// split.no or split.count of a file, what it is without them; llama.cpp takes them as u16 alone
static int32_t get_split(const headkv_gguf_source & source, const gguf_context * gguf, const char * key, int32_t none) {
    const int64_t id = gguf_find_key(gguf, key);
    if (id >= 0 && gguf_get_kv_type(gguf, id) != GGUF_TYPE_UINT16) {
        throw headkv_error(HEADKV_ERR_FILE, format("%s is damaged: %s must be u16", source.get_name().c_str(), key));
    }
    return id < 0 ? none : gguf_get_val_u16(gguf, id);
}

// how llama.cpp names the files of a split model, behind what they have in common
static std::string part_name(int32_t i, int32_t count) {
    return format("-%05d-of-%05d.gguf", i + 1, count);
}

// path: of the file, NULL for memory, which has no other parts beside it
static std::string model_id_of(headkv_gguf_source & first, const char * path) {
    const auto gguf     = first.parse();
    const char * name   = first.get_name().c_str();
    const int32_t count = std::max(get_split(first, gguf.get(), "split.count", 1), 1);
    const int32_t no    = count > 1 ? get_split(first, gguf.get(), "split.no", 0) : 0;

    std::string prefix = path ? path : "";
    if (no > 0) {
        throw headkv_error(HEADKV_ERR_FILE,
                           format("%s is part %d of a model in %d files: name the first", name, no + 1, count));
    }
    if (count > 1) {
        const std::string end = part_name(0, count);
        if (prefix.size() <= end.size() || prefix.compare(prefix.size() - end.size(), end.size(), end) != 0) {
            throw headkv_error(HEADKV_ERR_FILE,
                               format("%s is the first of %d files of a model: the others are found only if its name "
                                      "ends in %s",
                                      name, count, end.c_str()));
        }
        prefix.resize(prefix.size() - end.size());
    }

    uint64_t hash     = hash_tensors(headkv_hash_begin, first, gguf.get());
    int64_t n_tensors = gguf_get_n_tensors(gguf.get());
    for (int32_t i = 1; i < count; ++i) {
        const std::string part_path = prefix + part_name(i, count);

        headkv_gguf_source part(part_path.c_str());
        const auto part_gguf = part.parse();
        if (get_split(part, part_gguf.get(), "split.no", 0) != i ||
            get_split(part, part_gguf.get(), "split.count", 1) != count) {
            throw headkv_error(HEADKV_ERR_FILE,
                               format("%s is not part %d of %d, as its name says", part_path.c_str(), i + 1, count));
        }
        hash       = hash_tensors(hash, part, part_gguf.get());
        n_tensors += gguf_get_n_tensors(part_gguf.get());
    }
    if (n_tensors == 0) {
        throw headkv_error(HEADKV_ERR_FILE, first.get_name() + " holds no tensors");
    }
    return id_prefix + format("%016llx", (unsigned long long) hash);
}

std::string headkv_model_id(const char * path) {
    headkv_gguf_source source(path);
    return model_id_of(source, path);
}

std::string headkv_model_id(const void * data, size_t size) {
    headkv_gguf_source source(data, size);
    return model_id_of(source, nullptr);
}

bool headkv_is_model_id(const std::string & text) {
    return text.size() == id_prefix.size() + 16 && text.compare(0, id_prefix.size(), id_prefix) == 0 &&
           text.find_first_not_of("0123456789abcdef", id_prefix.size()) == std::string::npos;
}

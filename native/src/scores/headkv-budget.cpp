// Budgets as they are written: "5%", "64MiB", or entries.

#include "scores/headkv-budget.h"

#include "base/headkv-error.h"
#include "llama-impl.h"

#include <algorithm>
#include <cctype>
#include <cstring>

__extension__ typedef unsigned __int128 wide; // holds whatever 36 digits and a prompt make

static constexpr int n_digits_max = 18; // before and after the point

// Of a percentage each KV head has as many in the mean, or the whole prompt: with 8 or 16 entries, a sentence of 40
// tokens is answered by noise.
static constexpr int32_t least_of_share = 32;

namespace {

struct unit_name {
    const char * name;
    int64_t size;
};

} // namespace

static const unit_name units[] = {
    { "KiB", 1 << 10 },
    { "MiB", 1 << 20 },
    { "GiB", 1 << 30 },
};

static bool is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// digits at p, 1 to 18 of them, and how many; false for none, or too many
static bool read_digits(const char *& p, uint64_t & value, uint64_t & scale) {
    int n = 0;
    for (value = 0, scale = 1; *p >= '0' && *p <= '9'; ++p, ++n) {
        if (n == n_digits_max) {
            return false;
        }
        value  = value * 10 + (*p - '0');
        scale *= 10;
    }
    return n > 0;
}

// the unit at p: 1 for a percentage, 0 for none
static int64_t read_unit(const char *& p) {
    if (*p == '%') {
        p++;
        return 1;
    }
    for (const auto & unit : units) {
        const auto same = [](char a, char b) { return tolower((unsigned char) a) == tolower((unsigned char) b); };
        if (strlen(p) >= 3 && std::equal(unit.name, unit.name + 3, p, same)) {
            p += 3;
            return unit.size;
        }
    }
    return 0;
}

static bool parse(const char * p, headkv_budget & res) {
    const auto skip = [&]() {
        while (is_blank(*p)) {
            p++;
        }
    };
    uint64_t ignored;
    skip();
    if (!read_digits(p, res.whole, ignored)) {
        return false;
    }
    if (*p == '.' && !read_digits(++p, res.fraction, res.scale)) {
        return false;
    }
    skip();
    res.unit = read_unit(p);
    res.kind = res.unit == 1 ? headkv_budget::PERCENT : headkv_budget::BYTES;
    skip();
    return res.unit > 0 && *p == '\0';
}

headkv_budget headkv_budget_of(const headkv_retention & retention) {
    headkv_budget res;
    if (!retention.budget) {
        if (retention.entries > INT32_MAX) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("budget must be at most %d entries per KV head, not %lld",
                                                           INT32_MAX, (long long) retention.entries));
        }
        if (retention.entries < retention.window) {
            throw headkv_error(HEADKV_ERR_ARGUMENT,
                               format("budget must be at least the window of %d entries per KV head, not %lld",
                                      retention.window, (long long) retention.entries));
        }
        res.whole = retention.entries;
        res.text  = std::to_string(retention.entries);
        return res;
    }
    std::string text = std::string("'") + retention.budget + "'";
    std::replace_if(text.begin(), text.end(), [](char c) { return (unsigned char) c < ' '; }, ' '); // of one line
    if (!parse(retention.budget, res)) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           "budget must be an int (mean entries per KV head), a percentage of the prompt such as '5%' "
                           "or a size of what is kept such as '64MiB', not " +
                               text);
    }
    if (res.whole == 0 && res.fraction == 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "budget must be more than nothing, not " + text);
    }
    if (res.kind == headkv_budget::PERCENT && (res.whole > 100 || (res.whole == 100 && res.fraction > 0))) {
        throw headkv_error(HEADKV_ERR_ARGUMENT, "budget must be at most '100%' of the prompt, not " + text);
    }
    res.text = text;
    return res;
}

// in a unit of bytes, rounded up to a thousandth of it
static std::string size_text(int64_t n_bytes, int64_t unit) {
    const auto * named = std::find_if(std::begin(units), std::end(units), [&](auto & u) { return u.size == unit; });
    const wide n       = ((wide) n_bytes * 1000 + (wide) unit - 1) / (wide) unit;
    return format("%.10g%s", (double) n / 1000.0, named->name);
}

int64_t headkv_budget::n_bytes() const {
    const wide n = (wide) whole * (wide) unit + (wide) fraction * (wide) unit / (wide) scale;
    return (int64_t) std::min(n, (wide) INT64_MAX);
}

int64_t headkv_budget::total(int64_t n_heads, int64_t all_bytes, int64_t bounded_bytes, int32_t n_prompt,
                             int32_t window) const {
    const int64_t n_least = n_heads * window;
    const wide most       = (wide) n_heads * (wide) n_prompt;

    if (kind == ENTRIES) {
        return (int64_t) std::min((wide) whole * (wide) n_heads, most);
    }
    if (kind == PERCENT) {
        const wide n     = ((wide) whole * scale + fraction) * most / ((wide) scale * 100);
        const wide least = (wide) n_heads * std::max(window, least_of_share);
        return (int64_t) std::min(std::max(n, least), most);
    }
    const auto smallest = [&]() {
        const wide n = std::min((wide) bounded_bytes + (wide) all_bytes * (wide) window, (wide) INT64_MAX);
        return "the smallest budget that works is '" + size_text((int64_t) n, unit) + "'";
    };
    const int64_t left = n_bytes() - bounded_bytes;
    if (left < 0) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           "budget " + text + " is less than the " + size_text(bounded_bytes, unit) +
                               " that layers with a sliding window or a recurrent state hold in any case; " +
                               smallest());
    }
    const wide n = (wide) left * (wide) n_heads / (wide) all_bytes;
    if (n < (wide) n_least) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("budget %s keeps %.3g entries per KV head, less than the window of %d; %s",
                                  text.c_str(), (double) n / (double) n_heads, window, smallest().c_str()));
    }
    return (int64_t) std::min(n, most);
}

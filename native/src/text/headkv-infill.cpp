#include "text/headkv-infill.h"

#include "llama-vocab.h"

#include <algorithm>

// where `token` stands last before `stop`; negative where it does not, as a mark that the model has not: -1
static int32_t last_of(int32_t token, const int32_t * tokens, int32_t stop) {
    do {
        stop--;
    } while (stop >= 0 && tokens[stop] != token);
    return stop;
}

std::vector<headkv_part> headkv_infill_question(const llama_vocab & vocab, const int32_t * tokens, int32_t n_tokens,
                                                int32_t n_last) {
    const int32_t middle = last_of(vocab.token_fim_mid(), tokens, n_tokens);
    const int32_t prefix = last_of(vocab.token_fim_pre(), tokens, middle);
    const int32_t suffix = last_of(vocab.token_fim_suf(), tokens, middle);
    if (prefix < 0 || suffix < 0 || n_tokens - middle > n_last) {
        return {};
    }
    const int32_t gap = prefix < suffix ? suffix : middle;
    const int32_t end = prefix < suffix ? middle : prefix; // of what comes after the gap

    const headkv_part before = { std::max(prefix + 1, gap - n_last / 2), gap, 1.0 };
    const headkv_part after  = { suffix + 1, std::min(end, suffix + 1 + n_last / 4), 1.0 };

    std::vector<headkv_part> res = { before, after, { middle, n_tokens, 1.0 } };
    res.erase(std::remove_if(res.begin(), res.end(), [](const headkv_part & part) { return part.stop <= part.start; }),
              res.end());
    std::sort(res.begin(), res.end(), [](const headkv_part & a, const headkv_part & b) { return a.start < b.start; });
    return res;
}

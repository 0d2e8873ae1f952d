#include "text/headkv-asking.h"

#include "base/headkv-error.h"
#include "llama-impl.h"

#include <algorithm>
#include <numeric>

static constexpr int32_t n_ending = 32; // tokens after a question that the chat template may add

headkv_asking::headkv_asking(const headkv_part * question, size_t n_question, int32_t n_prompt, int32_t n_least,
                             int32_t n_room) {
    int64_t n_asking = 0;
    for (size_t i = 0; i < n_question; ++i) {
        const headkv_part & part = question[i];
        if (part.start < 0 || part.stop <= part.start || part.stop > n_prompt) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("no tokens from %d to %d are in a prompt of %d", part.start,
                                                           part.stop, n_prompt));
        }
        if (i > 0 && part.start < question[i - 1].start) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, "the parts of a question must be in their order");
        }
        n_asking += part.stop - part.start;
    }
    if (n_question == 0 || n_prompt < 1 || n_asking > 2 * (int64_t) n_prompt) {
        throw headkv_error(HEADKV_ERR_ARGUMENT,
                           format("%lld tokens cannot ask in a prompt of %d", (long long) n_asking, n_prompt));
    }

    // the last parts, if only what a template adds comes after them
    int64_t border = (int64_t) n_prompt - n_ending;
    first          = n_prompt - n_least;
    std::vector<const headkv_part *> last;
    for (const headkv_part * part = question + n_question; part-- > question;) {
        if (part->stop >= border) {
            last.push_back(part);
            border = part->start - n_ending;
            first  = std::min(first, part->start);
        }
    }
    std::vector<float> of_again;
    for (size_t i = 0; i < n_question; ++i) {
        if (std::find(last.begin(), last.end(), question + i) == last.end()) {
            // a token once, also where it is a piece of two parts
            const int32_t begin = again.empty() ? 0 : again.back() + 1;
            for (int32_t p = std::max(question[i].start, begin); p < question[i].stop; ++p) {
                again.push_back(p);
                of_again.push_back((float) question[i].weight);
            }
        }
    }
    first = std::max(std::min(1, n_prompt - 1), first); // nothing stands before a prompt of one token

    n_left_out = std::max<int64_t>(0, (int64_t) again.size() - std::max(n_room, 0));
    again.erase(again.begin(), again.begin() + n_left_out);

    weights.assign(std::max(0, n_prompt - first), 1.0f);
    weights.insert(weights.end(), of_again.begin() + n_left_out, of_again.end());
    for (const headkv_part * part : last) {
        std::fill(weights.begin() + std::max(0, part->start - first), weights.begin() + std::max(0, part->stop - first),
                  (float) part->weight);
    }
}

headkv_asking::headkv_asking(int32_t n_prompt, int32_t n_least)
    : first(std::max(std::min(1, n_prompt - 1), n_prompt - n_least)),
      again(n_prompt),
      weights(n_prompt - first + n_prompt, 1.0f) {
    std::iota(again.begin(), again.end(), 0);
}

void headkv_asking::stay_at(int32_t n) {
    const size_t n_gone = std::min<size_t>(std::max(0, n - first), weights.size());
    if (std::any_of(weights.begin() + n_gone, weights.end(), [](float w) { return w > 0.0f; })) {
        weights.erase(weights.begin(), weights.begin() + n_gone);
        first  = std::max(first, n);
        n_stay = n;
    }
}

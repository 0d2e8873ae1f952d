#include "base/headkv-error.h"
#include "base/headkv-guard.h"
#include "headkv.h"
#include "llama-impl.h"
#include "scores/headkv-caps.h"
#include "scores/headkv-scores.h"
#include "text/headkv-asking.h"
#include "text/headkv-text.h"

#include <algorithm>
#include <cstring>

// The part of headkv.h that stands in headkv-plan.h.

//
// head scores
//

int32_t headkv_scores_load(const char * path, headkv_scores ** scores) {
    return headkv_guard([&]() {
        headkv_require_pointer(scores);
        *scores = nullptr;
        headkv_require_pointer(path);
        *scores = new headkv_scores(headkv_scores::load(path));
    });
}

void headkv_scores_free(headkv_scores * scores) {
    delete scores;
}

int32_t headkv_scores_get_info(const headkv_scores * scores, headkv_scores_info * info, size_t size) {
    return headkv_guard([&]() {
        headkv_require_pointer(scores);
        headkv_require_pointer(info);
        headkv_require_size(size, sizeof(*info));
        *info = { scores->n_layer,
                  scores->n_head,
                  scores->n_head_kv,
                  scores->window,
                  scores->kernel,
                  scores->sinks,
                  scores->beta,
                  (int64_t) scores->texts.size(),
                  (int64_t) scores->curves.shares.size() };
    });
}

int32_t headkv_scores_get(const headkv_scores * scores, float * w, size_t n) {
    return headkv_guard([&]() {
        headkv_require_pointer(scores);
        headkv_require_pointer(w);
        headkv_require_size(n, scores->scores.size());
        std::copy(scores->scores.begin(), scores->scores.end(), w);
    });
}

int32_t headkv_scores_get_curves(const headkv_scores * scores, float * shares, size_t n_points, float * losses,
                                 size_t n_losses) {
    return headkv_guard([&]() {
        headkv_require_pointer(scores);
        headkv_require_pointer(shares);
        headkv_require_pointer(losses);
        const headkv_curves & curves = scores->curves;
        if (curves.shares.empty()) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, "the file of these head scores holds no curves");
        }
        headkv_require_length(n_points, curves.shares.size());
        headkv_require_length(n_losses, curves.losses.size());
        std::copy(curves.shares.begin(), curves.shares.end(), shares);
        std::copy(curves.losses.begin(), curves.losses.end(), losses);
    });
}

int32_t headkv_scores_get_layers(const headkv_scores * scores, int32_t * layers, size_t n) {
    return headkv_guard([&]() {
        headkv_require_pointer(scores);
        headkv_require_pointer(layers);
        headkv_require_size(n, scores->layers.size());
        std::copy(scores->layers.begin(), scores->layers.end(), layers);
    });
}

const char * headkv_scores_key(const headkv_scores * scores, int64_t i) {
    return scores && i >= 0 && i < (int64_t) scores->texts.size() ? scores->texts[i].first.c_str() : nullptr;
}

const char * headkv_scores_text(const headkv_scores * scores, int64_t i) {
    return scores && i >= 0 && i < (int64_t) scores->texts.size() ? scores->texts[i].second.c_str() : nullptr;
}

int32_t headkv_model_id(const char * path, char * id, size_t size) {
    return headkv_guard([&]() {
        headkv_require_pointer(path);
        headkv_require_pointer(id);
        const std::string res = headkv_model_id(path);
        if (size < res.size() + 1) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("the id needs %zu bytes, not %zu", res.size() + 1, size));
        }
        memcpy(id, res.c_str(), res.size() + 1);
    });
}

//
// budgets
//

int32_t headkv_init_retention(headkv_retention * retention, size_t size, const headkv_scores * scores) {
    return headkv_guard([&]() {
        headkv_require_pointer(retention);
        headkv_require_size(size, sizeof(*retention));
        *retention         = {};
        retention->entries = 128;
        retention->beta    = scores && scores->beta > 1.0f ? scores->beta : 1.3;
        retention->window  = scores && scores->window >= 1 ? scores->window : 8;
        retention->kernel  = scores && scores->kernel >= 1 ? scores->kernel : 29;
        retention->sinks   = scores && scores->sinks >= 0 ? scores->sinks : 4;
        retention->observe = 128;
        retention->draft   = 24;
        retention->file    = scores;
    });
}

int32_t headkv_check_retention(const headkv_retention * retention, size_t size) {
    return headkv_guard([&]() {
        headkv_require_pointer(retention);
        headkv_require_size(size, sizeof(*retention));
        headkv_check_retention(*retention);
    });
}

int32_t headkv_get_caps(const headkv_retention * retention, size_t size, const headkv_layer * layers, size_t n_layers,
                        int64_t bounded_bytes, int32_t n_prompt, int32_t * caps, size_t n) {
    return headkv_guard([&]() {
        headkv_require_pointer(retention);
        headkv_require_size(size, sizeof(*retention));
        headkv_require_pointer(layers);
        headkv_require_pointer(caps);
        const auto res = headkv_make_caps(*retention, layers, n_layers, bounded_bytes, n_prompt);
        headkv_require_length(n, res.size());
        std::copy(res.begin(), res.end(), caps);
    });
}

int32_t headkv_match_scores(const int32_t * scored, size_t n_scored, int32_t n_head, int32_t n_head_kv,
                            const headkv_layer * layers, size_t n_layers, int32_t * rows) {
    return headkv_guard([&]() {
        headkv_require_pointer(scored);
        headkv_require_pointer(layers);
        headkv_require_pointer(rows);
        const auto res = headkv_match_rows({ scored, scored + n_scored }, n_head, n_head_kv, layers, n_layers);
        std::copy(res.begin(), res.end(), rows);
    });
}

//
// text
//

int32_t headkv_get_sentences(const headkv_text * text, size_t size, uint8_t * ends, size_t n) {
    return headkv_guard([&]() {
        headkv_require_pointer(text);
        headkv_require_size(size, sizeof(*text));
        const headkv_text_view view(*text);
        headkv_require_length(n, view.n_tokens());
        if (n > 0) {
            headkv_require_pointer(ends);
            view.sentence_ends(ends);
        }
    });
}

int32_t headkv_get_question(const headkv_text * text, size_t size, int32_t start, int32_t stop, int32_t n_last,
                            headkv_part * parts, size_t * n) {
    return headkv_guard([&]() {
        headkv_require_pointer(text);
        headkv_require_size(size, sizeof(*text));
        headkv_require_pointer(parts);
        headkv_require_pointer(n);
        const auto res = headkv_text_view(*text).question(start, stop, n_last);
        if (*n < res.size()) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("there are %zu parts, not %zu", res.size(), *n));
        }
        std::copy(res.begin(), res.end(), parts);
        *n = res.size();
    });
}

int32_t headkv_get_observers(const headkv_part * question, size_t n_question, int32_t n_prompt, int32_t n_least,
                             int32_t n_room, int32_t n_stay, headkv_observers * res, size_t size) {
    return headkv_guard([&]() {
        headkv_require_pointer(question);
        headkv_require_pointer(res);
        headkv_require_size(size, sizeof(*res));
        if (n_least < 0) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("%d last tokens cannot observe", n_least));
        }
        headkv_asking asking(question, n_question, n_prompt, n_least, n_room);
        if (n_stay < 0 || n_stay >= n_prompt) {
            throw headkv_error(HEADKV_ERR_ARGUMENT, format("%d of %d tokens cannot stay", n_stay, n_prompt));
        }
        asking.stay_at(n_stay);
        if (res->weights) {
            headkv_require_length(res->n_weights, asking.weights.size());
            std::copy(asking.weights.begin(), asking.weights.end(), res->weights);
        }
        if (res->again) {
            headkv_require_length(res->n_again, asking.again.size());
            std::copy(asking.again.begin(), asking.again.end(), res->again);
        }
        res->first      = asking.first;
        res->n_left_out = asking.n_left_out;
        res->n_stay     = asking.n_stay;
        res->n_weights  = asking.weights.size();
        res->n_again    = asking.again.size();
    });
}

// What plans are made of: head scores, budgets, where sentences end, and what asks. Included by headkv.h.
#pragma once

#include "headkv.h"

#ifdef __cplusplus
extern "C" {
#endif

// cdef begin

// head scores as read from a GGUF file
struct headkv_scores;

// How much of prompts to keep, from which plans are made. headkv_init_retention() fills it.
struct headkv_retention {
    const char * budget; // "5%" of the prompt, at least 32 entries; or "64MiB", also KiB and GiB, for the whole model:
                         // kept rows, and what layers hold that do not retain. NULL: `entries`
    int64_t entries;     // mean entries of a KV head, window and sinks included; at least the window     128
    double beta;         // more than 1; higher: flatter budgets                                           1.3
    int32_t window;      // of the plan                                                                   8
    int32_t kernel;      // of the plan                                                                   29
    int32_t sinks;       // first_tokens of the plan                                                      4
    int32_t observe;     // last tokens of a prompt, or of a message, that may ask                        128
                         // 0, for headkv_read(): all of the prompt, read once more, and heads share the budget by what
                         // that looks at; a window of 1 leaves most to share
    int32_t draft;       // most tokens of a draft of the answer, to see what they look at; or 0          24
                         // for each of several questions, as their marks tell, up to four

    // The more, the larger a head's share. NULL: all are alike. Row-major [n_rows][n_cols], finite, not negative, not
    // all 0: a row for each layer that retains, a column for each query head, or for each KV head, of the layer that
    // has most; where these are as many, of query heads.
    const double * scores;
    size_t n_rows;
    size_t n_cols;

    // In place of scores, curves: what the loss of right answers is if one KV head keeps more, or less. Entries go
    // where the next one lowers the loss most. Row-major [n_rows][n_cols][n_points], finite; a column for each KV head
    // of the layer that has most. NULL: none.
    const float * losses;
    const float * shares; // [n_points] of a prompt beyond the window, ascending from 0 to 1
    size_t n_points;      // 2 to 64

    // In place of all of these: curves of a file, or its scores if it has none, for the layers that retain; or NULL
    const struct headkv_scores * file;

    const int32_t * caps; // in place of a budget, scores and curves, for headkv_read(): the caps of a plan; or NULL
    size_t n_caps;
};

// The text of tokens. Their pieces put together, and bytes up to the end of each token's.
struct headkv_text {
    const char * bytes; // [n_bytes] UTF-8; a token may hold a part of a character
    size_t n_bytes;
    const int64_t * ends; // [n_tokens] ascending, the last one n_bytes
    size_t n_tokens;
};

// Tokens of a prompt that ask, or may: from start on and before stop.
struct headkv_part {
    int32_t start;
    int32_t stop;
    double weight; // of each, from 0 to 1; 1/16 or 1e-4 where they only may ask: attention counts in its fourth power
};

// Whose attention selects: the last tokens of a prompt, and some that are read once more after it.
struct headkv_observers {
    int32_t first;      // from this position on
    int32_t n_left_out; // tokens that would be read once more, and that there is no room for
    int32_t n_stay;     // tokens that stay of those that were to, or 0
    int32_t * again;    // [n_again] positions of what is read once more; or NULL to ask how many
    size_t n_again;
    float * weights; // [n_weights] of all of these tokens, in their order; or NULL
    size_t n_weights;
};

// A prompt for headkv_read(): all of its tokens, those that the context holds too.
struct headkv_reading {
    const int32_t * tokens; // [n_tokens]
    size_t n_tokens;
    int32_t n_held; // so many of the first ones the context holds; the others are read. 0: all are read
    int32_t n_new;  // so many of the last ones came with this turn: others do not ask, unless they are told, or of the
                    // message that is. 0: those behind the prompt that was compacted last; all, where that is the same
                    // or is held in part only. So of a later turn that is read again it has to be said

    // The tokens that ask, as parts in their order. NULL and 0: what asks in the message of the tokens from
    // message_start (-1: where it begins is not known) on and before message_stop; of 0 and 0, in the last tokens that
    // are not held, or around the gap of a prompt that the model is to fill in
    const struct headkv_part * question;
    size_t n_question;
    int32_t message_start;
    int32_t message_stop;

    int32_t order; // HEADKV_ORDER_*
    int32_t panel; // as of a headkv_prompt; the following too
    int32_t logits;
    void (*progress)(void * data, int32_t done, int32_t total);
    void * data;
};

// What headkv_read() finds out. It is there before the first call of progress.
struct headkv_read_info {
    int32_t n_past;     // tokens that stay, and are not read
    int32_t n_again;    // tokens of a question, or of the whole prompt, that are read once more
    int32_t n_left_out; // tokens that would be, and that the context has no room for, or a sampler in its graph: they
                        // do not select. Of the whole prompt: all of it; its question selects
    int32_t order;      // HEADKV_ORDER_*, in which it is read
    int32_t compacts;   // 0 where the budget has room for all of it: it stays in the cells
};

struct headkv_scores_info {
    int64_t n_layer;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t window; // what the file recommends; negative where it says nothing, beta too
    int64_t kernel;
    int64_t sinks;
    double beta;
    int64_t n_texts;  // headkv.method and all headkv.source.*
    int64_t n_points; // of each curve, 0 where the file has none
};

// Head scores from the metadata of a GGUF file, a sidecar or a model; everything in it is checked.
// On success *scores is to be freed with headkv_scores_free(), on failure it is NULL and the code one of
// HEADKV_ERR_FILE, HEADKV_ERR_SCORES_*, HEADKV_ERR_MEMORY, with the cause as headkv_last_error().
HEADKV_API int32_t headkv_scores_load(const char * path, struct headkv_scores ** scores);
HEADKV_API void headkv_scores_free(struct headkv_scores * scores);

// size: sizeof(struct headkv_scores_info) of the caller.
HEADKV_API int32_t headkv_scores_get_info(const struct headkv_scores * scores, struct headkv_scores_info * info,
                                          size_t size);

// w: row-major [n_layer][n_head], n: its length.
HEADKV_API int32_t headkv_scores_get(const struct headkv_scores * scores, float * w, size_t n);

// Curves, of which budgets are made where a file has some. shares: [n_points]; losses: row-major
// [n_layer][n_head_kv][n_points], n_losses: its length. HEADKV_ERR_ARGUMENT where it has none.
HEADKV_API int32_t headkv_scores_get_curves(const struct headkv_scores * scores, float * shares, size_t n_points,
                                            float * losses, size_t n_losses);

// The model's layers that the rows of scores are of, ascending. n: n_layer.
HEADKV_API int32_t headkv_scores_get_layers(const struct headkv_scores * scores, int32_t * layers, size_t n);

// Which rows of scores are of the layers of a model that retain, from headkv_get_layers(). Of those of a file, and of
// any others: of the layers `scored`, ascending, with n_head query and n_head_kv KV heads in the layer that has most.
//   rows: [n_layers]
// HEADKV_ERR_SCORES_VALUE: they are of another model, or not of all of these layers
HEADKV_API int32_t headkv_match_scores(const int32_t * scored, size_t n_scored, int32_t n_head, int32_t n_head_kv,
                                       const struct headkv_layer * layers, size_t n_layers, int32_t * rows);

// Key and text number i of n_texts, NULL beyond. Numbers come as decimals. Valid as long as scores.
HEADKV_API const char * headkv_scores_key(const struct headkv_scores * scores, int64_t i);
HEADKV_API const char * headkv_scores_text(const struct headkv_scores * scores, int64_t i);

// Identity of a model's weights: a hash over name, type, shape and both ends of every tensor. The same with and
// without embedded scores, another for another quantization. id: size bytes, 32 are enough.
// Of a split model, path is the first part; all parts are read, and it is the identity of the model in one file.
HEADKV_API int32_t headkv_model_id(const char * path, char * id, size_t size);

// Defaults, which stand beside the fields above; with scores what their file recommends, and `file`. These must
// live as long as the retention is used. NULL: all heads get the same.
HEADKV_API int32_t headkv_init_retention(struct headkv_retention * retention, size_t size,
                                         const struct headkv_scores * scores);

// HEADKV_ERR_ARGUMENT for what can never work, whatever the model and the prompt.
HEADKV_API int32_t headkv_check_retention(const struct headkv_retention * retention, size_t size);

// How many entries each KV head keeps of a prompt of n_prompt tokens: the caps of a plan. They add up to the budget, or
// to the whole prompt where that is less; each is at least the window, and none above n_prompt. A prompt that is not
// longer than the window is kept whole. With scores s, of the sum 1, the window a and the mean budget b a head gets
//     a + (b - a) * (1 - 1/beta) + s * (b - a) / beta * (KV heads)
// and what it cannot use is shared out among the others. With curves it gets
//     a + (b - a) * (1 - 1/beta)
// rounded down, and the rest goes entry by entry where the next one lowers the loss most (docs/method.md). The caps
// take the bytes of equal ones, or, where rows of layers differ in size, up to one row fewer.
//   layers: those that retain, from headkv_get_layers()
//   bounded_bytes: what the other ones hold, which counts in a budget of bytes
//   caps: [KV heads of all layers]; n: its length
// HEADKV_ERR_ARGUMENT: also a budget of bytes that is too small; the text names the smallest that works
// HEADKV_ERR_SCORES_VALUE: scores of a file that are of a model of another shape, or of other layers. Whether they are
// of the same weights, the text headkv.source.model_id and headkv_model_id() tell.
HEADKV_API int32_t headkv_get_caps(const struct headkv_retention * retention, size_t size,
                                   const struct headkv_layer * layers, size_t n_layers, int64_t bounded_bytes,
                                   int32_t n_prompt, int32_t * caps, size_t n);

// 1 for the last token of every sentence and of every line, else 0: the ends of a plan. ends: [n_tokens], n: its
// length; size: sizeof(struct headkv_text)
HEADKV_API int32_t headkv_get_sentences(const struct headkv_text * text, size_t size, uint8_t * ends, size_t n);

// What asks in a message of the tokens from `start` on and before `stop`; with start -1, in what ends before `stop`, of
// which nobody says where it begins. A message of up to n_last tokens asks as a whole. A longer one holds a document:
// its last n_last tokens may ask; its first and its last short paragraphs do, or lines, up to a question mark that is
// near, and all of a list of questions. Where neither end has a question mark, questions between them do
// (docs/method.md).
//   parts: room for *n of them; *n: how many there are, at most 8
HEADKV_API int32_t headkv_get_question(const struct headkv_text * text, size_t size, int32_t start, int32_t stop,
                                       int32_t n_last, struct headkv_part * parts, size_t * n);

// Who observes a prompt of n_prompt tokens. Parts of a question at its end, also several with a few tokens between
// them, are observed where they stand, with all that comes after them; others are read once more after it, for they
// could not look at what came after them.
//   question: parts in their order
//   n_least: last tokens that observe in any case, since some models ask there: twice the window
//   n_room: tokens that may be read once more, as the context has positions
//   n_stay: tokens that are not read, since layers hold them that cannot go back: those do not observe. If nothing that
//   asks comes after them, all is read. 0 for other layers
//   res: its arrays have to be of the right length, where they are not NULL
HEADKV_API int32_t headkv_get_observers(const struct headkv_part * question, size_t n_question, int32_t n_prompt,
                                        int32_t n_least, int32_t n_room, int32_t n_stay, struct headkv_observers * res,
                                        size_t size);

// All of the above in one call: finds where sentences end, what asks and how much each head keeps, and calls
// headkv_prefill(). What it needs of the model's vocabulary it takes from the context. With headkv_set_archive() a
// later turn is read against all rows of the turns before; without, what is compacted is read again, where
// llama_decode() of the turn alone would go on behind what was kept. So would it after a light session was loaded:
// where n_archived of struct headkv_stats is 0, all is read.
// After HEADKV_ORDER_ANY, where a model with an archive was read by tokens, headkv_last_error() says why.
//   info: or NULL
//   sizes: sizeof() of the caller's structs
// Errors and what becomes of the context: as of headkv_prefill(), headkv_get_caps(), headkv_get_observers()
HEADKV_API int32_t headkv_read(struct llama_context * ctx, const struct headkv_reading * reading, size_t reading_size,
                               const struct headkv_retention * retention, size_t retention_size,
                               struct headkv_read_info * info, size_t info_size);

// cdef end

#ifdef __cplusplus
}
#endif

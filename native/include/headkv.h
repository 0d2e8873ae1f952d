// headkv: per-head retention of the KV cache, on top of a llama.cpp context.
//
// A prompt, or a later turn, in one call:
//
//   headkv_set_archive may be left out: where the full K and V rows of prompts are kept
//   headkv_read        of tokens and a retention, in headkv-plan.h: find what asks, and what each KV head may keep,
//                      read the prompt, layer by layer or in order of tokens, choose what is kept, and compact
//   llama_decode       the answer
//
// headkv_prefill() is the same by a plan that the caller has made.
//
// The same in steps, with all of the cache in place until the last, and without an archive:
//
//   headkv_reserve     may be left out
//   headkv_observe     HEADKV_OBSERVE_TOKENS: the question at the prompt's end, or the last 128 tokens or so
//   llama_decode       the prompt: the attention of those tokens to it is recorded
//   llama_decode, llama_memory_seq_rm  may be left out: a question that stands elsewhere, read once more after the
//                      prompt as a part of what is observed, and taken back
//   headkv_compact     by a plan: every KV head keeps its share, the rest of the KV cache is freed
//   llama_decode       the answer; llama_memory_clear() or a whole-sequence llama_memory_seq_rm()
//                      makes room for the next prompt
//   headkv_observe, llama_decode, headkv_compact
//                      may follow: HEADKV_OBSERVE_TAIL, and the tail, the tokens after the prompt, becomes a part of it
//
// Every function that returns int32_t returns HEADKV_OK or one of the codes below, never throws and
// never aborts on bad input; headkv_last_error() then tells the cause in one sentence. Unless a
// comment says otherwise, a failing call leaves the context exactly as it was.
//
// What cannot be promised is llama.cpp's: making a model or a context, and ggml, which aborts where it cannot get a few
// KiB of metadata. Arrays must be as long as their lengths say, text ends with a zero byte, names of files are in the
// system's encoding.
//
// One context is to be used by one thread at a time. Others may call meanwhile what says so: headkv_cancel(),
// headkv_last_error() and what tells of the cache, headkv_get_stats(), _layers(), _mask() and _device_bytes().
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef LLAMA_SHARED
#if defined(_WIN32) && !defined(__MINGW32__)
#ifdef LLAMA_BUILD
#define HEADKV_API __declspec(dllexport)
#else
#define HEADKV_API __declspec(dllimport)
#endif
#else
#define HEADKV_API __attribute__((visibility("default")))
#endif
#else
#define HEADKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// The Python binding is generated from the lines between the two cdef markers.
// cdef begin

enum headkv_const {
    HEADKV_ABI_VERSION = 14,

    HEADKV_OK              = 0,
    HEADKV_ERR_ARGUMENT    = -1, // a value or a shape that cannot be used
    HEADKV_ERR_UNSUPPORTED = -2, // a model or a context of a kind that cannot be compacted
    HEADKV_ERR_STATE       = -3, // the call does not fit what the context holds now
    HEADKV_ERR_MEMORY      = -4, // memory could not be had
    HEADKV_ERR_INTERNAL    = -5, // anything else that went wrong inside

    // head scores in GGUF metadata, see docs/gguf-metadata.md
    HEADKV_ERR_FILE           = -6,  // a file that cannot be read, is no GGUF, or is damaged
    HEADKV_ERR_SCORES_ABSENT  = -7,  // a GGUF without head scores
    HEADKV_ERR_SCORES_VERSION = -8,  // of a version that is not known
    HEADKV_ERR_SCORES_MISSING = -9,  // a key that must be there is not
    HEADKV_ERR_SCORES_TYPE    = -10, // a key has another type than it must
    HEADKV_ERR_SCORES_LENGTH  = -11, // an array or a text of the wrong length
    HEADKV_ERR_SCORES_VALUE   = -12, // not finite, negative, all zero, or out of range

    HEADKV_ERR_CANCELLED = -13, // headkv_cancel() came
    HEADKV_ERR_ARCHIVE   = -14, // the archive's file cannot be made, written or read
    HEADKV_ERR_SESSION   = -15, // a session that cannot be written or read, is damaged, or does not fit

    HEADKV_OBSERVE_OFF    = 0,
    HEADKV_OBSERVE_TOKENS = 1,
    HEADKV_OBSERVE_ROWS   = 2,
    HEADKV_OBSERVE_TAIL   = 3,

    HEADKV_ARCHIVE_NONE   = 0,
    HEADKV_ARCHIVE_MEMORY = 1,
    HEADKV_ARCHIVE_FILE   = 2,

    HEADKV_ORDER_TOKENS = 0, // all layers, batch by batch
    HEADKV_ORDER_LAYERS = 1, // all tokens of a panel, layer by layer: the K and V of one layer are in cells at a time
    HEADKV_ORDER_ANY    = 2, // for headkv_read(): with an archive by layers if the model's graph can be cut, else by
                             // tokens
};

struct llama_context;

// What to keep of a prompt.
struct headkv_plan {
    int32_t window; // the last prompt tokens, which are always kept; as many before them while all of these are at
                    // most half of a cap                                                      >= 1
    int32_t kernel; // width of the max-pool over positions, within a sentence                  >= 1, odd
    int32_t first_tokens; // prompt positions that are always kept where a cap has room for more than the window  >= 0

    // Entries to keep of each KV head of each layer that retains, in their order, window and first tokens included.
    // Each at least the window; a cap above the prompt keeps the whole prompt for that head.
    const int32_t * caps;
    size_t n_caps; // KV heads in all

    // Where the sentences of the prompt end: [n_ends], not 0 for the last position of a sentence. The max-pool does not
    // reach from one sentence into the next. NULL and 0: all of the prompt is one.
    const uint8_t * ends;
    size_t n_ends; // tokens in the cache

    // Not 0: the caps only say how much is kept in all. Each head gets as much of it as it has entries among the most
    // looked at ones of all heads. Of a fold: as large a share of it as the head has now.
    int32_t pooled;
};

// New tokens to read, with what the context holds before them.
struct headkv_prompt {
    const int32_t * tokens; // [n_tokens], from position n_past on
    size_t n_tokens;        // at least 1
    int32_t n_past; // tokens that stay: of a compacted prompt up to n_archived, else up to all in the cache. With
                    // sliding-window or recurrent layers all of these, or 0; read into cells, also as many as windows
                    // can go back to
    int32_t order;  // HEADKV_ORDER_*
    int32_t panel;  // HEADKV_ORDER_LAYERS: most tokens whose hidden states are in memory at once; 0: 256 MiB

    // The tokens that select: the last n_weights of those that are read, from position `first` on, each with its weight
    // from 0 to 1, not all 0.
    int32_t first;
    const float * weights; // [n_weights]
    size_t n_weights;

    // Tokens that are read once more after the prompt, as the last observed ones, and taken back: of a question that
    // stands before what it asks about. They count little for the positions that they stand at: text that comes twice
    // looks at where it stood before, whatever it asks. NULL, NULL and 0: none, as it has to be where the context has
    // samplers in its graph: they would draw what follows.
    // again_at NULL and as many tokens as the prompt has, those that stay too: all of it is read once more. They count
    // for all positions alike, and are read in pieces of 2,048, or of as many as the context has room for, each behind
    // the prompt: what a text looks at to be said again is what questions ask about that nobody knows yet.
    const int32_t * again;    // [n_again]
    const int32_t * again_at; // [n_again] ascending, or NULL
    size_t n_again;

    // Most tokens of a draft of the answer: each the likeliest one after what would be kept without them, and 64
    // entries of each KV head more, up to one that ends it, or to a sentence's end behind a third of them. What their
    // queries look at is observed beside all tokens above, and nothing stays of them. What the answer looks at they
    // know best: the others weigh 0.03 of what they would alone, those behind a third of the draft 0.1. Fewer where the
    // context has no room, none where the plan keeps all. 0: none.
    int32_t n_draft;

    // Not 0: logits of every token of `tokens`, which progress can read of each batch, as after llama_decode(). In
    // HEADKV_ORDER_LAYERS there are those of the last token only, as with 0. The context must be made for as many.
    int32_t logits;

    // Called with 0 first, and between batches, with how much is done, as tokens of n_tokens + n_again, and not for a
    // draft; or NULL.
    // headkv_cancel() in it, in the last call too, ends the reading. Calls that only ask may be made in it; others that
    // use the context are HEADKV_ERR_STATE. So llama_decode(), llama_memory_seq_rm(), _cp(), _add(), _div() and what
    // reads a state fail in it, and what gives one, unless the prompt is read into the cells; what else of llama.h
    // changes the context must not be called.
    void (*progress)(void * data, int32_t done, int32_t total);
    void * data;
};

// A layer that retains: one whose attention reaches to all positions. Layers with a sliding window and recurrent layers
// are bounded already and stay as they are.
struct headkv_layer {
    int32_t il;        // index in the model
    int32_t n_head;    // query heads
    int32_t n_head_kv; // KV heads
    int32_t row_bytes; // K and V of one entry of one KV head
};

// Of the layers that retain. All sizes in bytes are those of ggml's own buffers, all times in microseconds.
struct headkv_stats {
    int64_t n_layer;
    int64_t n_head_kv;     // KV heads, summed over the layers
    int64_t n_ctx;         // positions that the context can hold
    int64_t n_tokens;      // positions that it holds
    int64_t n_prompt;      // those of the compacted prompt, 0 when nothing is compacted
    int64_t n_kept;        // its kept entries, the window included, summed over layers and KV heads
    int64_t bytes_full;    // cells at full size (n_ctx of them)
    int64_t bytes_cells;   // cells as they are now
    int64_t bytes_kept;    // kept rows and head tables
    int64_t bytes_record;  // recorded attention, freed by compaction
    int64_t bytes_peak;    // most that the three held together since the last clear, with what is set aside while a
                           // prompt is read
    int64_t t_select_us;   // last compaction: choosing the entries, with a draft that chooses
    int64_t t_compact_us;  // last compaction: moving rows, freeing the full cache, fitting compute buffers
    int64_t n_splits;      // parts of the last graph, one more than it changes between devices; 0 before the first
    int64_t n_archived;    // positions whose full rows are in the archive: n_prompt, or 0; fewer after a fold where
                           // layers have a sliding window or a recurrent state
    int64_t bytes_archive; // in host memory or in a file; not counted above
};

// Bytes of ggml's own buffers on one device.
struct headkv_memory {
    int64_t bytes_weights;
    int64_t bytes_packed; // of these, host memory in another form than a file has: one that is mapped is held beside it
    int64_t bytes_cache;  // as headkv_get_device_bytes()
    int64_t bytes_compute; // what a batch computes in
};

// The ABI of the loaded library; compare it with HEADKV_ABI_VERSION before any other call.
HEADKV_API int32_t headkv_abi_version(void);

// Text of this thread's last error, "" without one; also why llama_decode() was refused by the cache, which clears the
// text first. Valid until this thread's next headkv or llama_decode call.
HEADKV_API const char * headkv_last_error(void);

// HEADKV_ERR_UNSUPPORTED with the reason if the context can never be compacted: flash attention off,
// more than one sequence, MLA or sparse attention, ALiBi, an encoder, no layer of full attention, ...
HEADKV_API int32_t headkv_supported(const struct llama_context * ctx);

// Room for a prompt of n tokens, those in the cache included, or for the whole context with 0. With more tokens it
// grows, and what was recorded until then is of no use. Holds until the prompt is cleared, also where llama_decode() of
// its first tokens fails. Without this call, a cache that was compacted and cleared gets cells for the whole context
// with the next token; that can be GiB.
// HEADKV_ERR_STATE on a compacted cache, HEADKV_ERR_MEMORY without that room; the cache stays as it was.
HEADKV_API int32_t headkv_reserve(struct llama_context * ctx, int32_t n);

// Forget what was recorded, and from now on record while tokens are decoded ...
//   HEADKV_OBSERVE_TOKENS: how much attention each KV head pays to every position, over n tokens from position `first`
//                          on, each with its weight; for headkv_compact(). What else is decoded is not recorded.
//   HEADKV_OBSERVE_ROWS  : the attention of each query head, of the last token only; for headkv_get_rows()
//   HEADKV_OBSERVE_TAIL  : what n tokens from position `first` on ask for, which are still to come; for
//                          headkv_compact(), which folds then. Beside the rest: nothing else is forgotten or ends. What
//                          is recorded is a part of the context's state, and of sessions.
//   HEADKV_OBSERVE_OFF   : nothing any more, but for a tail; what was recorded is kept
// It ends when the prompt is cleared, but holds where llama_decode() of its first tokens fails, none of them observed.
// On a compacted cache the first two are HEADKV_ERR_STATE; so is HEADKV_OBSERVE_TAIL with tokens that were decoded
// already. HEADKV_ERR_MEMORY without room for the records.
// What follows is of HEADKV_OBSERVE_TOKENS. weights: [n], each from 0 to 1 and not all 0, or NULL: all are 1. The range
// must reach to the end of the prompt that is compacted, or farther: tokens after it that are taken back when they were
// decoded observe, and are no part of the prompt. again_at: of the last n_again of the range, which are such tokens
// that the prompt has too, its positions, ascending; see struct headkv_prompt.
HEADKV_API int32_t headkv_observe(struct llama_context * ctx, int32_t what, int32_t first, int32_t n,
                                  const float * weights, const int32_t * again_at, size_t n_again);

// How many observed tokens one llama_decode() should have at most, of a model with sliding-window or recurrent layers,
// when the cache holds n_tokens with them: else what observing them takes for the time is more than 32 MiB, or a copy
// of K on a device. Other models' batches are cut for it as they come. HEADKV_ERR_STATE where no tokens are observed.
HEADKV_API int32_t headkv_get_observe_limit(const struct llama_context * ctx, int32_t n_tokens, int32_t * n);

// Select, gather the kept rows, free the full cache and make a small one for new tokens. Sequence 0 is the only one.
// Where there is an archive, it gets the full rows.
// After HEADKV_OBSERVE_TAIL, and of a compacted cache: fold the tail into the prompt, which may be compacted or whole.
// Each KV head chooses among the entries that it has kept and those in cells, as the tokens that were observed look at
// them. No more than `window` tokens may have come after these, and the window may reach no farther back than the one
// that the prompt was compacted with. The rows of the tail go to the archive as they are; of a compacted prompt none do
// where layers have a sliding window or a recurrent state, for only from where its rows end can these go on.
//   size: sizeof(struct headkv_plan) of the caller
// HEADKV_ERR_ARGUMENT: a plan that does not fit the model or the prompt
// HEADKV_ERR_STATE   : nothing decoded, not all tokens recorded that were to be observed, too large a window to fold;
//                      or a copy of the sequence (llama_memory_seq_cp()), which would be lost
// HEADKV_ERR_MEMORY  : kept rows or cells could not be allocated
// HEADKV_ERR_ARCHIVE : rows could not be written
// On any failure the full cache and the record stay as they were, and the call can be tried again.
HEADKV_API int32_t headkv_compact(struct llama_context * ctx, const struct headkv_plan * plan, size_t size);

// Keep the full rows of prompts that are read from now on: nowhere, in host memory, or in a file of this name, which is
// made and goes with the context. A prompt that is compacted loses what it has archived. Rows that others take the
// place of are held until the prompt is read. What sliding-window and recurrent layers hold at the end of a prompt is
// kept with it, in host memory: llama_memory_seq_rm() of all that comes after the prompt takes them back there.
// HEADKV_ERR_ARCHIVE: a file that cannot be made, is no archive, or is in use, by this context too: to begin the same
//                     file anew, ask for HEADKV_ARCHIVE_NONE first
HEADKV_API int32_t headkv_set_archive(struct llama_context * ctx, int32_t where, const char * path);

// Read a prompt or a later turn, select from all of it anew, and compact. In place of headkv_reserve(), _observe(),
// llama_decode() and headkv_compact(): rows of the tokens before come from the archive, whole, and those of the new
// ones go there; without an archive, to host memory meanwhile. Of a compacted prompt that means: what was decoded after
// it is read again with all of the new tokens. The logits of the last token are there afterwards, as after
// llama_decode(), its embeddings where the context gives those of tokens, and what samplers in the graph made of it.
// In HEADKV_ORDER_TOKENS, without an archive and while nothing is compacted, the prompt is read into the cells, and no
// row is copied.
//   plan: NULL to keep all: the prompt stays in the cells as llama_decode() leaves it, nothing is observed, and nothing
//         goes to an archive. In HEADKV_ORDER_TOKENS, while nothing is compacted.
//   sizes: sizeof() of the caller's structs
// HEADKV_ERR_ARGUMENT, _STATE: a prompt or a plan that does not fit
// HEADKV_ERR_UNSUPPORTED     : a model whose graph cannot be cut, in HEADKV_ORDER_LAYERS
// HEADKV_ERR_CANCELLED, _MEMORY, _ARCHIVE, ...: what was read of it is dropped
// On any failure the context is as it was, and the archive too, but for the logits. Where the prompt is read into the
// cells, they hold after n_past what was read of it: n_tokens of struct headkv_stats, and a later call can go on there.
// An archive's file that was cut short fails until the context is cleared; the kept rows go on without it.
HEADKV_API int32_t headkv_prefill(struct llama_context * ctx, const struct headkv_prompt * prompt, size_t prompt_size,
                                  const struct headkv_plan * plan, size_t plan_size);

// Full rows of the compacted prompt in the archive: of positions from `first` on, n of them, of layer number `layer` of
// those that retain: K of all KV heads of each position, then V.
//   size: bytes, n * n_head_kv * row_bytes
// set: positions that follow on those that the layer has, or replace them. They count once the end is set, which is
// what stands beside the rows, with sliding-window and recurrent layers at the prompt's end. All of it is checked, and
// where the end cannot be set, all stays as it was.
//   data: room for *size bytes, or NULL to ask how many there are
// HEADKV_ERR_STATE  : nothing compacted, no archive, or, of set, a prompt that is archived already
// HEADKV_ERR_ARCHIVE: its file cannot be read or written
HEADKV_API int32_t headkv_get_archived(struct llama_context * ctx, int32_t layer, int32_t first, int32_t n, void * rows,
                                       size_t size);
HEADKV_API int32_t headkv_set_archived(struct llama_context * ctx, int32_t layer, int32_t first, int32_t n,
                                       const void * rows, size_t size);
HEADKV_API int32_t headkv_get_archived_end(struct llama_context * ctx, void * data, size_t * size);
HEADKV_API int32_t headkv_set_archived_end(struct llama_context * ctx, const void * data, size_t size);

// Hold the full rows of the compacted prompt in the archive, whatever is read after them, until they are released or
// headkv_set_archive() is called. *id: a number for them; 0 where the compacted prompt is not archived. No row is
// copied, but for the last 255 at most when other tokens come after them. HEADKV_ERR_STATE where nothing is compacted.
HEADKV_API int32_t headkv_hold_archived(struct llama_context * ctx, int32_t * id);

// The compacted prompt, read from a state of when its rows were held, has these in the archive again. They are held
// on. HEADKV_ERR_STATE: they are not, or no longer since a file was cut short, or they are of another prompt, as their
// number and the rows in cells tell
HEADKV_API int32_t headkv_restore_archived(struct llama_context * ctx, int32_t id);
HEADKV_API int32_t headkv_release_archived(struct llama_context * ctx, int32_t id);

// The attention recorded for each prompt position, before the max-pool: the weighted power mean with exponent 4 over
// the observed tokens and the query heads of the group, where a token counts for positions at least 16 before it, for
// others as 0; over all layers that share K and V. w: [KV heads of all layers][n_prompt], n: its length.
// HEADKV_ERR_STATE without a complete record (compaction frees it), HEADKV_ERR_UNSUPPORTED without any in a layer.
HEADKV_API int32_t headkv_get_attention(const struct llama_context * ctx, float * w, size_t n);

// What the last decoded token's query heads attended to in one layer, number `layer` of those that retain:
// w[n_head of the layer][n_tokens in the cache], n: its length. Softmax rows: each sums to 1 (less with attention
// sinks). Of layers that share K and V, those of the last one. For measuring head scores. HEADKV_ERR_STATE if rows are
// not being recorded.
HEADKV_API int32_t headkv_get_rows(const struct llama_context * ctx, int32_t layer, float * w, size_t n);

// Contexts that this thread makes from now on have a few cells until their first prompt comes, not n_ctx of them: for
// prompts that are read layer by layer, and whose full cache need not fit. 0: no longer.
HEADKV_API int32_t headkv_begin_small(int32_t on);

// What llama.cpp asserts while this thread makes a model or a context is thrown from now on, and does not end the
// process: llama_model_load_from_file() and llama_init_from_model() log it and return NULL. Metadata that cannot be,
// such as no layers, ends there. To be turned off again (0) before anything else is called.
HEADKV_API int32_t headkv_begin_refusing(int32_t on);

// The next three may be called from any thread, and what tells of devices below.

// The retention mask: 1 where the prompt position was kept, else 0. mask: row-major
// [KV heads of all layers][n_prompt], n: its length. HEADKV_ERR_STATE if not compacted.
HEADKV_API int32_t headkv_get_mask(const struct llama_context * ctx, uint8_t * mask, size_t n);

// The layers that retain, n of them: n_layer of struct headkv_stats.
HEADKV_API int32_t headkv_get_layers(const struct llama_context * ctx, struct headkv_layer * layers, size_t n);

// size: sizeof(struct headkv_stats) of the caller.
// kept: entries kept of each KV head, all 0 when nothing is compacted; n: its length, KV heads in all. Or NULL and 0.
// All of it is of one moment.
HEADKV_API int32_t headkv_get_stats(const struct llama_context * ctx, struct headkv_stats * stats, size_t size,
                                    int32_t * kept, size_t n);

// Where the KV cache is now: bytes[ggml_backend_dev_count()], n: its length, in ggml's order of devices. Of any
// context, also one that can never be compacted.
HEADKV_API int32_t headkv_get_device_bytes(const struct llama_context * ctx, int64_t * bytes, size_t n);

// Where the layers that retain lie, as numbers of ggml's devices: devices[n_layer of struct headkv_stats], n: its
// length.
HEADKV_API int32_t headkv_get_layer_devices(const struct llama_context * ctx, int32_t * devices, size_t n);

// Of a prompt that is read layer by layer: the tokens of a panel where struct headkv_prompt leaves them open, and the
// bytes of one token's hidden states between two layers. Of any context with a layer of full attention, else
// HEADKV_ERR_UNSUPPORTED.
HEADKV_API int32_t headkv_get_panel(struct llama_context * ctx, int32_t * n_tokens, int64_t * row_bytes);

// What a context takes on each device: memory[ggml_backend_dev_count()], n: its length, in ggml's order of devices. Of
// any context; of one whose model was loaded with no_alloc, what it would take: such a context can be asked, and what
// changes it is HEADKV_ERR_UNSUPPORTED. Not for other threads.
//   size: sizeof(struct headkv_memory) of the caller
HEADKV_API int32_t headkv_get_memory(const struct llama_context * ctx, struct headkv_memory * memory, size_t size,
                                     size_t n);

// Makes headkv_cancel() work, for which it takes the context's abort callback. Once per context.
HEADKV_API int32_t headkv_cancel_enable(struct llama_context * ctx);

// From any thread: from now on until headkv_cancel_clear(), llama_decode() stops and returns 2, and sessions are
// neither written nor loaded (HEADKV_ERR_CANCELLED): clear it before one is saved at the end. The tokens of
// llama_decode()'s unfinished ubatch are not in the cache then. Recurrent layers cannot take tokens back: a single one
// is decoded to its end, and before more of them llama_state_seq_get_data_ext() with LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
// keeps what to put back before llama_memory_seq_rm().
HEADKV_API int32_t headkv_cancel(struct llama_context * ctx);
HEADKV_API int32_t headkv_cancel_clear(struct llama_context * ctx);

// cdef end

#ifdef __cplusplus
}
#endif

#include "headkv-plan.h"
#include "headkv-session.h"

// Sessions: what a context holds, in a file. Included by headkv.h.
#pragma once

#include "headkv.h"

#ifdef __cplusplus
extern "C" {
#endif

// cdef begin

// A session that is open.
struct headkv_session_file;

// What a session holds beside what the context does.
struct headkv_session {
    const char * model_id;   // as headkv_model_id() gives it
    const char * model_path; // the file that the model was loaded from; of a split model the first
    const char * header;     // text of the caller's own, UTF-8, 64 MiB at most; or NULL. docs/sessions.md has Python's
    const int32_t * tokens;  // [n_tokens] all that the context holds
    size_t n_tokens;
    size_t n_prompt;      // of these, the prompt that was read last; 0: not known. A compacted one need not be told
    const float * logits; // [n_vocab] of the last token, as llama_get_logits_ith() gives them; or NULL

    // What it takes to go back to the end of the prompt: the logits of its last token, [n_vocab], and of recurrent
    // layers what llama_state_seq_get_data_ext() with LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY gave there, after n_prompt
    // tokens; NULL, and 0, without such layers. Or NULL.
    const float * prompt_logits;
    const void * prompt_state;
    size_t n_prompt_state;

    int32_t light; // not 0: without these and without the archive; later turns are then read against what was kept, by
                   // llama_decode(): headkv_read() reads all where n_archived of struct headkv_stats is 0

    // Of a session that is open; not looked at when one is saved.
    const char * model_name;
    int32_t n_archived; // positions of the prompt whose full rows are in it
    int32_t n_ctx;      // what the context was made with
    int32_t n_batch;
    int32_t n_ubatch;
    int32_t type_k; // as ggml numbers them
    int32_t type_v;
    float rope_freq_base; // 0: the model's own
    float rope_freq_scale;
};

// A file of what a context holds, with its archive: docs/sessions.md. Python's save_session() and open_session() write
// and read it by these functions. It appears whole or not at all, and in place of an earlier session alone; another
// file of that name stays.
//   size: sizeof(struct headkv_session) of the caller
// HEADKV_ERR_ARGUMENT: another number of tokens than the context holds (which ones they are is not compared), tokens
//                      that are none of the model's, another prompt than the context's, a prompt_state that is not of
//                      its end, a model_id that headkv_model_id() does not give, or a header that is too long or is not
//                      UTF-8
// HEADKV_ERR_UNSUPPORTED: RoPE settings that are no finite numbers, or a base or a scale below 0
// HEADKV_ERR_STATE   : tokens were taken back, and a sliding window has forgotten what the next one looks at
// HEADKV_ERR_SESSION : the file cannot be written
// HEADKV_ERR_CANCELLED: headkv_cancel() came, before or meanwhile; the file of before is still there
HEADKV_API int32_t headkv_session_save(struct llama_context * ctx, const char * path,
                                       const struct headkv_session * session, size_t size);

// Open a session, which stays the one that it is, whatever takes its name, until headkv_session_close(). What it says
// of itself is read and checked; on failure *file is NULL. HEADKV_ERR_SESSION: no session, of another format, damaged
HEADKV_API int32_t headkv_session_open(const char * path, struct headkv_session_file ** file);
HEADKV_API void headkv_session_close(struct headkv_session_file * file);

// All pointers are the file's, until it is closed, also where it is loaded again. tokens, logits and what goes back are
// NULL until it is loaded. One file is for one thread at a time, whatever contexts it is loaded into.
//   size: sizeof(struct headkv_session) of the caller
HEADKV_API int32_t headkv_session_get(const struct headkv_session_file * file, struct headkv_session * session,
                                      size_t size);

// Go on where the session was saved; nothing is read again. The context must be of the same model, with K and V of the
// same types and the same RoPE. The rows of the session's archive go to this context's, if headkv_set_archive() has
// made one. With the logits, where the session has them: llama_get_logits_ith(ctx, -1). Not where samplers are a part
// of the context's graph: what such a one would have taken is in no session, but struct headkv_session has the logits.
// To go back to the prompt's end: llama_state_seq_set_data_ext() of prompt_state, where there is one and the prompt is
// not archived, llama_memory_seq_rm() of what comes after n_prompt tokens, and prompt_logits say what comes next.
//   model_id: of the context's model, as headkv_model_id() gives it
// HEADKV_ERR_SESSION  : damaged, of another model, or longer than the context, which is as it was then; where a file
//                       without damage says what cannot be, the context is empty
// HEADKV_ERR_CANCELLED: headkv_cancel() came; the context is as it was, or empty where it had been given up already
// HEADKV_ERR_MEMORY, _ARCHIVE, ...: the context is empty, or as it was where nothing had been given up
HEADKV_API int32_t headkv_session_load(struct llama_context * ctx, struct headkv_session_file * file,
                                       const char * model_id);

// What rows depend on beside tokens, model and adapters: the RoPE that a context has, the types of K and V. A saved
// state of a context with another id means something else here.
HEADKV_API int32_t headkv_get_rows_id(struct llama_context * ctx, uint64_t * id);

// cdef end

#ifdef __cplusplus
}
#endif

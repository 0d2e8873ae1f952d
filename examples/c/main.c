// headkv-example MODEL.gguf DOCUMENT.txt SESSION QUESTION...: reads a document and answers questions about it; where
// the session is there already, of C or Python, it goes on from that. The last of several questions is asked in another
// context, which goes on from the session that was saved before. At the end all of it is saved.
#include <headkv.h>
#include <llama.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_CTX = 4096, N_ANSWER = 32, N_TEXT = 1 << 20 };

static struct headkv_retention keep;
static int32_t tokens[N_CTX]; // of the conversation, in the context
static size_t n_tokens;
static char text[N_TEXT];
static char id[32]; // of the model's weights

static void require(bool ok, const char * what) {
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, *headkv_last_error() ? headkv_last_error() : "failed, or is too long");
        exit(1);
    }
}

static void log_errors(enum ggml_log_level level, const char * said, void * data) {
    (void) data;
    fputs(level == GGML_LOG_LEVEL_ERROR ? said : "", stderr);
}

static void show(void * data, int32_t done, int32_t total) {
    (void) data;
    fprintf(stderr, "\rread %d of %d tokens%s", done, total, done == total ? "\n" : "");
}

static struct llama_context * open_context(struct llama_model * model) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx                       = N_CTX;
    params.flash_attn_type             = LLAMA_FLASH_ATTN_TYPE_ENABLED; // kept rows need it
    const long n_cores                 = sysconf(_SC_NPROCESSORS_ONLN);
    if (n_cores > 0 && n_cores < params.n_threads) { // threads without a core of their own wait for each other
        params.n_threads = params.n_threads_batch = (int32_t) n_cores;
    }
    headkv_begin_small(1); // the full cache is never there at once
    struct llama_context * ctx = llama_init_from_model(model, params);
    headkv_begin_small(0);
    require(ctx && headkv_set_archive(ctx, HEADKV_ARCHIVE_MEMORY, NULL) == HEADKV_OK, "making a context");
    return ctx;
}

// The first n_text bytes of text are what comes after the conversation so far, up to where the answer begins.
static void ask(struct llama_context * ctx, const struct llama_vocab * vocab, size_t n_text) {
    const int n = llama_tokenize(vocab, text, (int) n_text, tokens + n_tokens, (int) (N_CTX - N_ANSWER - n_tokens),
                                 n_tokens == 0, false);
    require(n >= 0, "the prompt");
    const struct headkv_reading prompt = { .tokens   = tokens,
                                           .n_tokens = n_tokens + n,
                                           .n_held   = (int32_t) n_tokens,
                                           .order    = HEADKV_ORDER_ANY,
                                           .progress = show };
    n_tokens += n;
    require(headkv_read(ctx, &prompt, sizeof(prompt), &keep, sizeof(keep), NULL, 0) == HEADKV_OK, "reading");
    for (int i = 0; i < N_ANSWER; ++i) {
        const float * logits = llama_get_logits_ith(ctx, -1);
        llama_token best     = 0;
        for (llama_token token = 1; token < llama_vocab_n_tokens(vocab); ++token) {
            best = logits[token] > logits[best] ? token : best;
        }
        if (llama_vocab_is_eog(vocab, best)) {
            break;
        }
        char piece[256];
        const int n_piece = llama_token_to_piece(vocab, best, piece, sizeof(piece), 0, false);
        printf("%.*s", n_piece > 0 ? n_piece : 0, piece);
        tokens[n_tokens++] = best;
        require(llama_decode(ctx, llama_batch_get_one(&best, 1)) == 0, "answering");
    }
    printf("\n");
}

static void save(struct llama_context * ctx, const char * path, const char * model_path) {
    const struct headkv_session session = {
        .model_id   = id,
        .model_path = model_path,
        .header =
            "{\"retention\": {\"budget\": \"10%\", \"archive\": \"memory\", \"scores\": \"uniform\"}}", // for Python
        .tokens   = tokens,
        .n_tokens = n_tokens,
        .logits   = llama_get_logits_ith(ctx, -1),
    };
    require(headkv_session_save(ctx, path, &session, sizeof(session)) == HEADKV_OK, "saving");
}

static void go_on(struct llama_context * ctx, const char * path) {
    struct headkv_session session;
    struct headkv_session_file * file;
    require(headkv_session_open(path, &file) == HEADKV_OK && headkv_session_load(ctx, file, id) == HEADKV_OK &&
                headkv_session_get(file, &session, sizeof(session)) == HEADKV_OK,
            "opening");
    n_tokens = session.n_tokens; // at most N_CTX: others do not fit into the context
    memcpy(tokens, session.tokens, n_tokens * sizeof(*tokens));
    headkv_session_close(file);
}

int main(int argc, char ** argv) {
    FILE * file = argc > 4 ? fopen(argv[2], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: headkv-example MODEL.gguf DOCUMENT.txt SESSION QUESTION...\n");
        return 2;
    }
    size_t length = fread(text, 1, N_TEXT / 2, file); // the document stands before the first question
    require(!ferror(file) && length < N_TEXT / 2, argv[2]);
    fclose(file);

    llama_log_set(log_errors, NULL);
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    require(model && headkv_model_id(argv[1], id, sizeof(id)) == HEADKV_OK, argv[1]);
    headkv_init_retention(&keep, sizeof(keep), NULL);
    keep.budget = "10%"; // of what is read

    struct llama_context * ctx = open_context(model);
    file                       = fopen(argv[3], "rb");
    if (file) {
        fclose(file);
        go_on(ctx, argv[3]);
        length = 0; // the document has been read
    }
    for (int i = 4; i < argc; ++i, length = 0) {
        if (i > 4 && i == argc - 1) {
            save(ctx, argv[3], argv[1]);
            llama_free(ctx);
            ctx = open_context(model);
            go_on(ctx, argv[3]);
        }
        const int n = snprintf(text + length, N_TEXT - length, "\n\nQuestion: %s\nAnswer:", argv[i]);
        ask(ctx, llama_model_get_vocab(model), length + n);
    }
    save(ctx, argv[3], argv[1]); // with the last answer
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}

#pragma once

#include "observe/headkv-record.h"

#include "llama.h"

#include <cstdint>
#include <limits>
#include <vector>

class llama_kv_cells;
struct llama_ubatch;

// An observed token counts for positions that far before it, and farther ones: what stands nearer is looked at whatever
// the text says.
static constexpr llama_pos headkv_gap = 16;

// Weight of the places that tokens which are read once more stand at, for these tokens, as if they paid them a third of
// the attention: text that comes twice looks at its first copy, whatever it asks. Not 0: a question that stands before
// a document is kept for that alone.
static constexpr float headkv_copied = 0.01f;

// Which tokens' attention is recorded while their ubatch is decoded, and the records of all layers. Two kinds:
//
//   TOKENS: per KV head, the sum of fourth powers over the tokens of a range, each with its weight, and the query heads
//           of the GQA group
//   ROWS:   per query head, the row of the last token of the last ubatch
class headkv_observer {
public:
    enum mode { TOKENS, ROWS };

    // first    : TOKENS: position where the range begins; what else is decoded is not recorded
    // weights  : TOKENS: of each token of the range
    // again    : TOKENS: positions of which the last tokens of the range are copies, ascending
    // allocates; throws headkv_error, std::bad_alloc
    headkv_observer(mode mode, const std::vector<headkv_layer_shape> & shapes, uint32_t n_cells, llama_pos first,
                    std::vector<float> weights, std::vector<llama_pos> again);

    // How many tokens from position p0 on may be one ubatch, of n_max at most. Observed ones of a ubatch are bounded:
    // n_kv cells.
    uint32_t limit(llama_pos p0, uint32_t n_max, size_t n_kv) const;

    // How many observed tokens may be in one ubatch.
    uint32_t at_once(size_t n_kv) const;

    // This ubatch is about to be decoded; cells: with its tokens. False if graphs built before are of no use for it.
    bool aim(const llama_ubatch & ubatch, const llama_kv_cells & cells);

    // The range is recorded: what is built next records tokens of these weights that would stand from position p0 on,
    // beside it.
    void aim_beside(llama_pos p0, std::vector<float> weights, const llama_kv_cells & cells);

    // is anything of the ubatch to be recorded
    bool aims() const { return on && aimed.n > 0; }

    // for the graph that is made next
    headkv_record_inputs build_inputs(ggml_context * ctx, uint32_t n_kv);
    void set_inputs(const headkv_record_inputs & in) const;

    // Tokens from position `border` on are `n` farther on in the range: a later piece of what is read once more.
    void move_on(llama_pos border, llama_pos n) {
        moved_from = border;
        moved_by   = n;
    }

    // add the recording of layer ikv to the graph
    void build(ggml_context * ctx, ggml_cgraph * gf, uint32_t ikv, const headkv_attention & attn) const {
        records[ikv].build(ctx, gf, attn, aimed.i0, aimed.n, in);
    }

    // positions from p0 on are taken out of the cache: what was recorded is of use for those before
    void remove(llama_pos p0);

    // Is the whole range recorded, for a prompt of n tokens: up to its last token, or farther.
    bool covers(uint32_t n_prompt) const;

    llama_pos range_end() const { return range_first + (llama_pos) range_weights.size(); }

    // does any token of the range count for any position: none does in a prompt that is shorter than the gap
    bool counts() const;

    // is anything of the range recorded, or about to be
    bool has_begun() const { return what == TOKENS && n_tokens > 0; }

    // is the token at position `pos` the last one recorded
    bool has_seen(llama_pos pos) const { return pos < valid && last == pos; }

    // what was recorded of layer ikv, by position: [rows][n_prompt]; cell[p]: the cell of position p
    std::vector<float> read(uint32_t ikv, const std::vector<uint32_t> & cell) const;

    // how far it has come: set back where the same tokens come again, for other layers
    struct seen {
        uint32_t n_tokens;
        llama_pos last;
    };

    seen get_seen() const { return { n_tokens, last }; }
    void set_seen(const seen & s) {
        n_tokens = s.n_tokens;
        last     = s.last;
    }

    mode get_mode() const { return what; }

    uint32_t get_n_tokens() const { return n_tokens; }

    size_t size() const; // bytes of the buffers

    void add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

    bool on = true;

private:
    // of a ubatch, what is recorded
    struct view {
        uint32_t i0    = 0;           // first token
        uint32_t n     = 0;           // tokens
        uint32_t first = 0;           // cells before this one count for all of them
        std::vector<llama_pos> pos;   // [n]
        std::vector<float> weights;   // [n]
        std::vector<bool> copies;     // [n]: is it read once more
        std::vector<llama_pos> cells; // positions from cell `first` on, none: the largest there is
        std::vector<bool> copied;     // of those cells, which hold what the last tokens of the range are copies of
    };

    void aim_at(const llama_kv_cells & cells); // for the positions aimed at

    // of a token at position p
    llama_pos place_in_range(llama_pos p) const { return p < moved_from ? p : p + moved_by; }

    // is the token at place p of the range read once more
    bool is_copy(llama_pos p) const { return p >= range_end() - (llama_pos) again_at.size(); }

    const mode what;
    llama_pos range_first;
    std::vector<float> range_weights;
    std::vector<llama_pos> again_at;

    llama_pos moved_from = 0;
    llama_pos moved_by   = 0;

    bool on_device      = false; // is any layer
    uint32_t n_head_max = 0;     // query heads of a layer

    std::vector<headkv_record> records; // per layer

    view aimed;
    headkv_record_inputs in; // of the graph that is made

    uint32_t n_tokens = 0;
    llama_pos last    = -1;
    llama_pos valid   = std::numeric_limits<llama_pos>::max(); // positions from here on are not those recorded
};

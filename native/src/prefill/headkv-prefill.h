#pragma once

#include "cache/headkv-bounded.h"
#include "cache/llama-kv-cache-headkv.h"
#include "prefill/headkv-queue.h"
#include "slice/headkv-hidden.h"
#include "slice/headkv-slice.h"

#include <exception>
#include <functional>
#include <memory>
#include <vector>

// One prompt that is read, selected from and compacted: what headkv_prefill() does. Its rows go to the archive layer by
// layer, and kept rows are gathered from there. Until that is done everything that the context held is set aside, and
// if anything fails it is put back.
//
// In order of tokens, without an archive, there is nothing to set aside while nothing is compacted: the prompt is read
// into the cells that there are, kept rows are gathered from these, and what was read stays if anything fails.
class llama_kv_cache_headkv::reading {
public:
    // throws headkv_error for a prompt that does not fit the context, std::bad_alloc
    // plan: nullptr to keep all in the cells
    reading(llama_kv_cache_headkv & kv, llama_context & ctx, const headkv_prompt & prompt, const headkv_plan * plan);
    ~reading(); // puts back what was set aside, unless all is done

    void run();

    // called while a graph is built: cut it to the slice that is read; false if that cannot be
    bool cut(llm_graph_result & res, const llama_ubatch & ubatch);

private:
    struct panel {
        const int32_t * tokens;
        uint32_t n;
        uint32_t p0;
        bool keep;   // it is a part of the prompt
        bool output; // of its last token, but for n_beside ones
        uint32_t n_beside = 0;
    };

    // headkv-prefill-require.cpp
    void require_prompt() const;
    void require_tokens(const int32_t * tokens, size_t n) const;
    void require_past() const;
    void require_outputs() const;

    void require_not_cancelled() const;

    // positions of what is read once more
    std::vector<llama_pos> again_at() const {
        return { prompt.again_at, prompt.again_at + (prompt.again_at ? prompt.n_again : 0) };
    }

    void make_slices();

    void take_over(); // rows that are in cells only, to the archive
    void begin();     // set aside, and make room for the whole prompt
    void put_back();  // what was set aside
    void read_panels(const int32_t * tokens, uint32_t n, uint32_t p0, bool keep);
    void read_panel(const panel & p);
    void read_slice(const panel & p);
    void read_batches(const panel & p);
    void decode(const panel & p, uint32_t i, uint32_t n);
    uint32_t batch_end(const panel & p, uint32_t i) const;

    // headkv-prefill-rows.cpp: cells, and rows between those of slice i and the archive
    std::unique_ptr<llama_kv_cache> make_room() const;
    void load(size_t i, uint32_t n, bool with_v = true); // the rows of the first n positions
    void store(size_t i, const panel & p);

    // headkv-prefill-behind.cpp
    bool reads_behind() const { return prompt.n_again + n_draft > 0; }
    uint32_t n_told() const { return prompt.n_tokens + prompt.n_again; } // to progress
    void tell(uint32_t n) const;
    void behind(const std::function<void()> & work); // which decodes behind the prompt; nothing stays of it
    void read_again();
    void take_back();

    // headkv-prefill-draft.cpp
    void plan_draft();
    bool has_logits() const;
    uint32_t n_early() const;           // tokens of a draft that count in full, and that it has if the answer has
    std::vector<float> weights() const; // of observed tokens, but for the draft
    void observe_draft();
    std::unique_ptr<headkv_queries> draft_beside_cells();
    std::unique_ptr<headkv_queries> draft_without_room();
    void decode_draft(std::unique_ptr<headkv_queries> & asked); // which records
    void look(const headkv_queries & asked, const headkv_slice & s);

    // headkv-prefill-cells.cpp: into the cells that there are
    void begin_in_cells();
    uint32_t n_cells_in_use() const;
    void begin_batch(llama_pos p0);
    void leave_cells(); // what was read stays, in whole batches where layers can go back

    void compact();
    std::vector<headkv_kept::positions> choose(const headkv_plan & plan) const;
    std::unique_ptr<headkv_kept_prompt> gather(std::vector<headkv_kept::positions> keep) const;
    std::unique_ptr<llama_kv_cache> make_tail(uint32_t p0, uint32_t n_cells) const;
    size_t n_bytes_aside() const;

    llama_kv_cache_headkv & kv;
    llama_context & ctx;
    const headkv_prompt & prompt;
    const bool keeps_all;
    const headkv_plan plan;
    const uint32_t n_past;
    const uint32_t n_prompt;
    const uint32_t n_piece; // tokens that are read once more at a time
    uint32_t n_draft = 0;   // most tokens of a draft of the answer
    std::vector<int32_t> draft_caps;
    headkv_plan draft_plan; // what it is made with
    uint32_t n_done = 0;    // read so far, of the prompt and of what comes behind it
    int64_t t_select_us;    // when selection began, with the draft that it needs

    const bool in_cells;
    llama_pos p_batch = -1;                     // where a batch begins that is not done
    std::unique_ptr<headkv_bounded> unfinished; // what recurrent layers held before a batch

    std::unique_ptr<headkv_archive> meanwhile; // where the context has none
    headkv_archive * archive;

    std::vector<headkv_slice> slices;
    headkv_slice slice; // that is read now
    headkv_hidden hidden;
    uint32_t n_panel = 0;
    size_t i_slice   = 0;
    bool checked     = false;

    // Rows of a device are moved beside what is computed: slices lie in two rooms in turns, and while one is computed
    // the rows of the slice before go and those of the slice after come.
    size_t n_rooms = 1;
    std::unique_ptr<headkv_queue> rows;
    std::vector<uint64_t> loaded; // of each slice: the job that loads its rows

    std::exception_ptr failure; // to cut the graph

    // set aside
    bool begun = false;
    std::unique_ptr<llama_kv_cache> cells;
    std::unique_ptr<headkv_kept_prompt> kept;
    std::unique_ptr<headkv_observer> obs;
    std::unique_ptr<headkv_queries> queries;
    headkv_bounded bounded;

    std::shared_ptr<headkv_bounded> at_end; // of the prompt
    std::vector<llama_kv_cell_ext> exts;    // of each position
};

#include "slice/headkv-slice.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_set>
#include <utility>
#include <vector>

// of a panel, where the caller does not say how many tokens it may have
static constexpr size_t n_bytes_hidden = 256u * 1024 * 1024;

static constexpr uint32_t n_cells_pad = 256; // attention reaches over cells to a multiple of these

static const char record_mark[] = "headkv_record-";

void headkv_name_records(ggml_cgraph * gf, int i0, int32_t il) {
    for (int i = i0; i < gf->n_nodes; ++i) {
        ggml_tensor * t = gf->nodes[i];
        if (t->view_src && t->view_src->buffer && strncmp(t->view_src->name, "headkv_record_", 14) == 0) {
            ggml_format_name(t, "%s%d", record_mark, il);
        }
    }
}

static bool is_mask(const ggml_tensor * t) {
    return strncmp(t->name, "attn_inp_kq_mask", 16) == 0;
}

static bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE ||
           t->op == GGML_OP_TRANSPOSE || t->op == GGML_OP_NONE;
}

// the layer of the cache that a tensor lies in, -1 if it lies in none
static int32_t cache_layer(const ggml_tensor * t) {
    const ggml_tensor * root = t->view_src ? t->view_src : t;
    if (!root->buffer || strncmp(root->name, "cache_", 6) != 0) {
        return -1;
    }
    const char * suffix = strstr(root->name, "_l");
    return suffix ? atoi(suffix + 2) : -1;
}

// the layer that writes into memory of its own here, -1 if none does
static int32_t writing_layer(const ggml_tensor * t) {
    if (strncmp(t->name, record_mark, strlen(record_mark)) == 0) {
        return atoi(t->name + strlen(record_mark));
    }
    return is_view(t) || !t->view_src ? -1 : cache_layer(t);
}

namespace {

// what a slice needs of a graph
struct needed {
    ggml_tensor * in  = nullptr; // the first layer's input, null where the slice begins with the model
    ggml_tensor * out = nullptr; // the last layer's output, null where it ends with the model
    std::unordered_set<const ggml_tensor *> tensors;
    std::string problem;
};

} // namespace

// what goes through tensors that a set of nodes needs, without what lies before `in`; false if they need the cache of a
// layer that is not in the slice
static bool walk(std::vector<const ggml_tensor *> todo, const ggml_tensor * in, const headkv_slice & slice,
                 std::unordered_set<const ggml_tensor *> & met, int32_t & other) {
    const auto add = [&](const ggml_tensor * t) {
        if (t && t != in && met.insert(t).second) {
            todo.push_back(t);
        }
    };
    for (const ggml_tensor * t : std::exchange(todo, {})) {
        add(t);
    }
    while (!todo.empty()) {
        const ggml_tensor * t = todo.back();
        todo.pop_back();

        other = cache_layer(t);
        if (other >= 0 && !slice.holds(other)) {
            return false;
        }
        for (const ggml_tensor * src : t->src) {
            add(src);
        }
        add(t->view_src);
    }
    return true;
}

// what is computed for a slice, whatever goes into it
static std::vector<const ggml_tensor *> results(const llm_graph_result & res, const headkv_slice & slice,
                                                const ggml_tensor * out) {
    const ggml_cgraph * gf = res.get_gf();

    std::vector<const ggml_tensor *> all;
    if (out) {
        all.push_back(out);
    } else {
        all.push_back(gf->nodes[gf->n_nodes - 1]);
        all.push_back(res.get_logits());
    }
    for (int i = 0; i < gf->n_nodes; ++i) {
        if (slice.holds(writing_layer(gf->nodes[i]))) {
            all.push_back(gf->nodes[i]);
        }
    }
    return all;
}

static bool is_hidden(const ggml_tensor * t, uint32_t n_tokens) {
    return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && ggml_nelements(t) % n_tokens == 0 && !t->view_src;
}

// Is anything in the graph called after layer il: some models have layers that pass on what they read (deci).
static bool computes(const ggml_cgraph * gf, int32_t il) {
    return std::any_of(gf->nodes, gf->nodes + gf->n_nodes, [&](const ggml_tensor * t) {
        const char * number = strrchr(t->name, '-');
        return number && atoi(number + 1) == il;
    });
}

// What layer il reads of the layers before. Models name it, or llama.cpp; where a name is given twice, it is the first
// tensor after the cache of the layer before through which all goes that the layers from il on need of earlier ones.
static ggml_tensor * layer_input(const llm_graph_result & res, int32_t il, int32_t n_layer, uint32_t n_tokens) {
    const ggml_cgraph * gf = res.get_gf();
    while (il > 0 && !computes(gf, il - 1)) {
        il--;
    }
    if (ggml_tensor * t = res.get_layer_inp(il)) {
        return t;
    }
    if (ggml_tensor * t = ggml_graph_get_tensor(res.get_gf(), format("l_out-%d", il - 1).c_str())) {
        return t;
    }
    const headkv_slice before = { 0, il, n_layer };
    const headkv_slice after  = { il, n_layer, n_layer };
    const auto all            = results(res, after, nullptr);

    int32_t other = 0;
    bool near     = false;
    for (int i = 0; i < gf->n_nodes; ++i) {
        ggml_tensor * t = gf->nodes[i];
        for (const ggml_tensor * src : t->src) {
            near = near || (src && cache_layer(src) == il - 1);
        }
        std::unordered_set<const ggml_tensor *> met, met_before;
        if (near && is_hidden(t, n_tokens) && walk(all, t, after, met, other) &&
            walk({ t }, nullptr, before, met_before, other)) {
            return t;
        }
    }
    return nullptr;
}

size_t headkv_hidden_row(const llm_graph_result & res, const llama_hparams & hparams) {
    const ggml_tensor * tokens = res.get_inp_tokens();

    size_t most = sizeof(float) * hparams.n_embd;
    for (int32_t il = 1; tokens && il < (int32_t) hparams.n_layer(); ++il) {
        if (const ggml_tensor * t = layer_input(res, il, hparams.n_layer(), tokens->ne[0])) {
            most = std::max(most, ggml_nbytes(t) / tokens->ne[0]);
        }
    }
    return most;
}

uint32_t headkv_panel(size_t row, uint32_t n_batch, uint32_t n_ubatch) {
    const uint32_t most = std::max<size_t>(1, n_bytes_hidden / row);
    const uint32_t step = most >= n_batch ? n_batch : most >= n_ubatch ? n_ubatch : 1;
    return most / step * step;
}

static needed find_needed(const llm_graph_result & res, const headkv_slice & slice, uint32_t n_tokens) {
    const auto input = [&](int32_t il) { return layer_input(res, il, slice.n_layer, n_tokens); };

    needed ne;
    ne.in  = slice.begin == 0 ? nullptr : input(slice.begin);
    ne.out = slice.end == slice.n_layer ? nullptr : input(slice.end);
    if ((slice.begin > 0 && !ne.in) || (slice.end < slice.n_layer && !ne.out)) {
        ne.problem =
            format("its graph has no place to cut at layer %d", slice.begin > 0 && !ne.in ? slice.begin : slice.end);
        return ne;
    }
    for (const ggml_tensor * t : { ne.in, ne.out }) {
        if (t && !is_hidden(t, n_tokens)) {
            ne.problem = format("layer %d reads no hidden states of tokens", t == ne.in ? slice.begin : slice.end);
            return ne;
        }
    }
    int32_t other;
    if (!walk(results(res, slice, ne.out), ne.in, slice, ne.tensors, other)) {
        ne.problem = format("layer %d needs what layer %d computes from its cache", slice.begin, other);
    }
    return ne;
}

std::string headkv_check_slice(const llm_graph_result & res, const headkv_slice & slice, uint32_t n_tokens,
                               size_t & row) {
    const needed ne = find_needed(res, slice, n_tokens);

    row = ne.in ? ggml_nbytes(ne.in) / n_tokens : 0;
    return ne.problem;
}

// The mask of a layer whose cells are in the order of their positions, by nodes of the graph: the host would fill and
// send the same one again for each slice of layers. 0 for the cells before the ubatch, a triangle from there on. There
// is room for the mask of the prompt's last ubatch: a graph that needs more memory than the one before would be planned
// anew, and wait for that.
static void make_mask(llm_graph_result & res, std::unordered_set<const ggml_tensor *> & tensors,
                      const llama_ubatch & ubatch, uint32_t n_cells) {
    ggml_cgraph * gf   = res.get_gf();
    ggml_context * ctx = res.get_ctx();

    ggml_tensor * mask = nullptr;
    for (int i = 0; i < gf->n_leafs; ++i) {
        if (is_mask(gf->leafs[i]) && tensors.count(gf->leafs[i])) {
            mask = mask ? nullptr : gf->leafs[i];
        }
    }
    const auto looks_into = [&](const ggml_tensor * t) { return t->view_src == mask; };
    if (!mask || mask->type != GGML_TYPE_F16 || ggml_nrows(mask) != ubatch.n_tokens ||
        std::any_of(gf->nodes, gf->nodes + gf->n_nodes, looks_into)) {
        return;
    }

    const int64_t p0   = ubatch.pos[0];
    const int64_t rest = mask->ne[0] - p0;

    // the scheduler knows where a view lies by what is computed into what it views: all of it is filled
    const auto zeros = [&](ggml_type type, int64_t n, int64_t n_most) {
        ggml_tensor * room = ggml_new_tensor_1d(ctx, type, std::max(n, n_most) * ubatch.n_tokens);
        return ggml_view_2d(ctx, ggml_fill_inplace(ctx, room, 0.0f), n, ubatch.n_tokens, n * ggml_type_size(type),
                            /*offset =*/0);
    };
    ggml_tensor * all = zeros(GGML_TYPE_F16, mask->ne[0], n_cells);
    ggml_tensor * now = zeros(GGML_TYPE_F32, rest, n_cells > 0 ? ubatch.n_tokens + n_cells_pad : 0);
    ggml_tensor * to  = ggml_view_2d(ctx, all, rest, ubatch.n_tokens, all->nb[1], p0 * sizeof(ggml_fp16_t));

    for (int i = 0; i < gf->n_nodes; ++i) {
        std::replace(std::begin(gf->nodes[i]->src), std::end(gf->nodes[i]->src), mask, all);
    }
    tensors.erase(mask);

    const int n_nodes = gf->n_nodes;
    ggml_build_forward_expand(gf, ggml_cpy(ctx, ggml_diag_mask_inf(ctx, now, 0), to));
    std::rotate(gf->nodes, gf->nodes + n_nodes, gf->nodes + gf->n_nodes); // before what looks at it
}

void headkv_cut(llm_graph_result & res, const headkv_slice & slice, const llama_ubatch & ubatch,
                const headkv_hidden & hidden) {
    ggml_cgraph * gf  = res.get_gf();
    needed ne         = find_needed(res, slice, ubatch.n_tokens);
    const uint32_t i0 = ubatch.pos[0] - slice.p0;

    gf->n_nodes = std::remove_if(gf->nodes, gf->nodes + gf->n_nodes,
                                 [&](const ggml_tensor * t) { return ne.tensors.count(t) == 0; }) -
                  gf->nodes;
    gf->uid = 0; // it is another graph now

    if (ne.in) {
        ne.in->op       = GGML_OP_NONE;
        ne.in->view_src = nullptr;
        ne.in->flags    = GGML_TENSOR_FLAG_INPUT;
        std::fill(std::begin(ne.in->src), std::end(ne.in->src), nullptr);
        hidden.place(ne.in, i0);
    }

    if (slice.drops_masks && slice.is_causal) {
        make_mask(res, ne.tensors, ubatch, slice.n_cells);
    }

    // Inputs that this slice does not use stay: llama.cpp writes them all, but for masks that have no memory, which
    // only a hybrid memory without windows writes nevertheless.
    gf->n_leafs = std::remove_if(gf->leafs, gf->leafs + gf->n_leafs,
                                 [&](const ggml_tensor * t) {
                                     return ne.tensors.count(t) == 0 &&
                                            (!(t->flags & GGML_TENSOR_FLAG_INPUT) || (slice.drops_masks && is_mask(t)));
                                 }) -
                  gf->leafs;

    if (ne.out) {
        ggml_build_forward_expand(gf, ggml_cpy(res.get_ctx(), ne.out, hidden.view(res.get_ctx(), ne.out, i0)));
    }
}

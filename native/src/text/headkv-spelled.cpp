#include "text/headkv-spelled.h"

#include "llama-vocab.h"

#include <algorithm>
#include <unordered_map>

// control tokens have none
static std::string piece_of(const llama_vocab & vocab, int32_t token) {
    std::string res(32, '\0');
    int32_t n = vocab.token_to_piece(token, res.data(), res.size(), 0, /*special =*/false);
    if (n < 0) {
        res.resize(-n);
        n = vocab.token_to_piece(token, res.data(), res.size(), 0, /*special =*/false);
    }
    res.resize(std::max(n, 0));
    return res;
}

headkv_spelled::headkv_spelled(const llama_vocab & vocab, const int32_t * tokens, size_t n_tokens) {
    ends.reserve(n_tokens);
    std::unordered_map<int32_t, std::string> pieces;
    for (size_t i = 0; i < n_tokens; ++i) {
        auto [it, is_new] = pieces.try_emplace(tokens[i]);
        if (is_new && vocab.get_type() != LLAMA_VOCAB_TYPE_NONE) {
            it->second = piece_of(vocab, tokens[i]);
        }
        bytes += it->second;
        ends.push_back(bytes.size());
    }
}

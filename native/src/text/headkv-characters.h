#pragma once

#include <cstddef>
#include <cstdint>

// Characters of a text in UTF-8, in many scripts: what ends its lines, sentences and questions.

bool headkv_is_space(uint8_t c);

int64_t headkv_n_characters(const uint8_t * p, const uint8_t * end);

// Bytes of what ends a line at p, and of what may close a sentence there; 0 for none.
size_t headkv_feed_at(const uint8_t * p, const uint8_t * end);
size_t headkv_closer_at(const uint8_t * p, const uint8_t * end);

// Whether a question mark, or a colon, is at p.
bool headkv_is_mark(const uint8_t * begin, const uint8_t * p, const uint8_t * end);
bool headkv_is_colon(const uint8_t * begin, const uint8_t * p, const uint8_t * end);

// The end of the first sentence that ends with what stands from p to `to`, nullptr for none.
const uint8_t * headkv_find_sentence_end(const uint8_t * begin, const uint8_t * p, const uint8_t * to,
                                         const uint8_t * end);

const uint8_t * headkv_find_feed(const uint8_t * p, const uint8_t * end);

// Behind what is blank or ends lines.
const uint8_t * headkv_find_text(const uint8_t * p, const uint8_t * end);

// How many lines end before the next text.
int headkv_n_feeds(const uint8_t * p, const uint8_t * end);

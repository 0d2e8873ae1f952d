#pragma once

#include <cstddef>

// done once, when all lanes have come with their arguments
typedef void (*headkv_emu_op)(void ** args);

void headkv_emu_together(headkv_emu_op op, void * arg);

// checks an address in shared memory
const char * headkv_emu_shared(const void * p, size_t size, size_t align);

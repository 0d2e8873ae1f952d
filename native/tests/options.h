#pragma once

#include "ggml-backend.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

// Is an option among a program's arguments.
inline bool has_option(int argc, char ** argv, const char * name) {
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], name) == 0) {
            return true;
        }
    }
    return false;
}

// --gpu: ends the program where there is no CUDA device. What ran on the CPU alone has not passed on a GPU.
inline bool has_gpu_option(int argc, char ** argv) {
    if (!has_option(argc, argv, "--gpu")) {
        return false;
    }
    ggml_backend_reg_t cuda = ggml_backend_reg_by_name("CUDA");
    if (!cuda || ggml_backend_reg_dev_count(cuda) == 0) {
        printf("failed: --gpu, and there is no CUDA device\n");
        exit(1);
    }
    return true;
}

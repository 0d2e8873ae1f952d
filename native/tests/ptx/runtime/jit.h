#pragma once

// Kernels from the fat binaries that a program registers with the CUDA runtime.

#include "ptx-host.h"

// a fat binary as nvcc embeds it; returned as the handle of its kernels
void ** ptx_register_module(const void * fatbin);

// the kernel of this name in the module, translated and compiled at its first use; ends the process where that fails
const ptx_kernel & ptx_find_kernel(void ** module, const char * name);

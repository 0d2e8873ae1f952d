#pragma once

// The folder of the ggml library itself, nullptr where that cannot be told. A build whose backends are loaded at run
// time looks for them there, whatever program it was loaded into: ggml would look beside that program (python) and in
// the current folder, which may hold anything.
const char * headkv_backends_dir(void);

#pragma once

// Streams as lazy as CUDA lets them be: what was submitted is done when somebody waits for it, and no earlier. Who
// reads or frees too early finds what was there before.

#include <cuda_runtime_api.h>

#include <functional>
#include <mutex>

using ptx_work = std::function<void()>;

// held by all that looks at the devices
std::recursive_mutex & ptx_mutex();

// says what was done wrong and ends the process
[[noreturn]] void ptx_fail(const char * who, const char * what);

// one more for the log
void ptx_count(const char * what);

// the device that this thread has chosen, and the one whose work is being done
int ptx_chosen_device();
int ptx_working_device();

// to the end of the stream, or of what is captured from it
void ptx_submit(cudaStream_t stream, ptx_work work);

// as ptx_submit(); a kernel has to be launched on the device that was chosen
void ptx_submit_kernel(cudaStream_t stream, const char * name, ptx_work work);

// do all of a stream's work, of a device's streams, of all streams
void ptx_finish(cudaStream_t stream);
void ptx_finish_device(int device);
void ptx_finish_all();

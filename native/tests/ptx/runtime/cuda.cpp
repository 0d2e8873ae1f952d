// The part of the CUDA runtime that ggml uses, on a machine without a GPU: device memory is the host's, streams are
// lazy (stream.h), a captured graph is a list of what to do, and kernels run lane by lane (ptx-warp.h). To be
// preloaded; takes the place of libcudart's functions.
//
//   HEADKV_PTX_DEVICES   number of devices (1), none of which can reach another's memory
//   HEADKV_PTX_MIB       memory of each (81920)
//   HEADKV_PTX_CACHE     folder of the compiled kernels (headkv-ptx in the folder for temporary files)
//   HEADKV_PTX_LOG       file to which the number of launches of each kernel is appended at the end

#include "jit.h"
#include "stream.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#undef cudaGetDeviceProperties

struct kernel_name {
    void ** module;
    std::string name;
};

static constexpr int n_devices_max = 16;

struct allocation {
    uint64_t end;
    int device; // -1: page-locked host memory
};

// never destroyed: kernels are registered before main() and the log is written after it
struct machine {
    std::map<const void *, kernel_name> names; // by the host's stub
    std::map<std::string, long> launches;
    std::map<uint64_t, allocation> memory; // by its begin
    size_t used[n_devices_max] = {};
    size_t size                = 0; // of each device
    int n_devices              = 1;
    cudaError_t error          = cudaSuccess;

    machine() {
        const char * mib = getenv("HEADKV_PTX_MIB");
        const char * n   = getenv("HEADKV_PTX_DEVICES");
        size             = (mib ? strtoull(mib, nullptr, 10) : 81920) << 20;
        n_devices        = n ? atoi(n) : 1;
        if (n_devices < 1 || n_devices > n_devices_max) {
            ptx_fail("HEADKV_PTX_DEVICES", "must be from 1 to 16");
        }
    }
};

static machine & gpu() {
    static machine & res = *new machine;
    return res;
}

static constexpr size_t smem_per_block = 227 * 1024;

static cudaError_t result(cudaError_t err) {
    if (err != cudaSuccess) {
        gpu().error = err;
    }
    return err;
}

// the allocation that holds the address, nullptr if there is none
static const std::pair<const uint64_t, allocation> * find_allocation(uint64_t address) {
    auto it = gpu().memory.upper_bound(address);
    if (it == gpu().memory.begin()) {
        return nullptr;
    }
    --it;
    return address < it->second.end ? &*it : nullptr;
}

// for a kernel: of the device that it runs on
static bool find_memory(uint64_t address, uint64_t & begin, uint64_t & end) {
    const auto * found = find_allocation(address);
    if (!found || found->second.device != ptx_working_device()) {
        return false;
    }
    begin = found->first;
    end   = found->second.end;
    return true;
}

void ptx_count(const char * what) {
    gpu().launches[what]++;
}

static void fail(const char * kernel, const char * what, uint64_t address, uint64_t size) {
    char text[256];
    snprintf(text, sizeof(text), "%s: 0x%llx, %llu", what, (unsigned long long) address, (unsigned long long) size);
    ptx_fail(kernel, text);
}

static char * shared_memory(size_t size) {
    static char * memory =
        (char *) mmap(nullptr, smem_per_block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (memory == MAP_FAILED || size > smem_per_block) {
        fail("a block", "so much shared memory cannot be had", 0, size);
    }
    return memory;
}

static cudaError_t launch(const void * stub, dim3 grid, dim3 block, void ** args, size_t smem, cudaStream_t stream) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());

    const auto & name = gpu().names.at(stub);
    const auto & k    = ptx_find_kernel(name.module, name.name.c_str());

    std::string params(k.params_size, 0);
    for (int i = 0; i < k.n_params; ++i) {
        memcpy(&params[k.param_offsets[i]], args[i], k.param_sizes[i]);
    }
    ptx_submit_kernel(stream, k.name, [=, &k] {
        static const ptx_host host = { find_memory, fail, shared_memory };
        ptx_count(k.name);
        k.run({ { grid.x, grid.y, grid.z }, { block.x, block.y, block.z }, params.data(), smem }, host);
    });
    return cudaSuccess;
}

__attribute__((destructor)) static void write_log() {
    const char * path = getenv("HEADKV_PTX_LOG");
    FILE * file       = path ? fopen(path, "a") : nullptr;
    if (!file) {
        return;
    }
    for (const auto & it : gpu().launches) {
        fprintf(file, "%8ld %s\n", it.second, it.first.c_str());
    }
    fclose(file);
}

extern "C" {

//
// what nvcc's stubs call
//

void ** __cudaRegisterFatBinary(void * fatbin) {
    return ptx_register_module(fatbin);
}

void __cudaRegisterFatBinaryEnd(void **) {}

void __cudaUnregisterFatBinary(void **) {}

void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

void __cudaRegisterFunction(void ** module, const char * stub, char *, const char * name, int, uint3 *, uint3 *, dim3 *,
                            dim3 *, int *) {
    gpu().names[stub] = { module, name };
}

static thread_local struct {
    dim3 grid;
    dim3 block;
    size_t smem;
    void * stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t smem, void * stream) {
    configuration = { grid, block, smem, stream };
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 * grid, dim3 * block, size_t * smem, void * stream) {
    *grid             = configuration.grid;
    *block            = configuration.block;
    *smem             = configuration.smem;
    *(void **) stream = configuration.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t * kernel, const void * stub) {
    *kernel = (cudaKernel_t) stub;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void ** args, size_t smem,
                               cudaStream_t stream) {
    return launch(kernel, grid, block, args, smem, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t * config, const void * stub, void ** args) {
    return launch(stub, config->gridDim, config->blockDim, args, config->dynamicSmemBytes, config->stream);
}

cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute attribute, int value) {
    const bool fits = attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value <= (int) smem_per_block;
    return result(fits ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes * attributes, const void *) {
    *attributes                    = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs            = 64;
    attributes->binaryVersion      = 90;
    attributes->ptxVersion         = 90;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int * n, const void *, int, size_t, unsigned) {
    *n = 2;
    return cudaSuccess;
}

//
// the devices
//

// CUDA_VISIBLE_DEVICES: the first so many of a list, none of an empty one
cudaError_t cudaGetDeviceCount(int * n) {
    *n = gpu().n_devices;
    if (const char * visible = getenv("CUDA_VISIBLE_DEVICES")) {
        const int n_listed = *visible ? 1 + std::count(visible, visible + strlen(visible), ',') : 0;
        *n                 = std::min(*n, n_listed);
    }
    return result(*n > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaSetDeviceFlags(unsigned) {
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int * can, int, int) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char * name, int size, int id) {
    snprintf(name, size, "0000:%02x:00.0", id);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int * value, cudaDeviceAttr, int) {
    *value = 0;
    return cudaSuccess;
}

// as an H100, so that work is cut as there
cudaError_t cudaGetDeviceProperties(cudaDeviceProp * p, int) {
    *p = {};
    snprintf(p->name, sizeof(p->name), "PTX on the CPU");
    p->totalGlobalMem              = gpu().size;
    p->sharedMemPerBlock           = 48 * 1024;
    p->sharedMemPerBlockOptin      = smem_per_block;
    p->sharedMemPerMultiprocessor  = 228 * 1024;
    p->warpSize                    = 32;
    p->major                       = 9;
    p->multiProcessorCount         = 132;
    p->maxThreadsPerBlock          = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock                = 65536;
    p->regsPerMultiprocessor       = 65536;
    p->l2CacheSize                 = 50 << 20;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() {
    const cudaError_t err = gpu().error;
    gpu().error           = cudaSuccess;
    return err;
}

cudaError_t cudaPeekAtLastError() {
    return gpu().error;
}

const char * cudaGetErrorString(cudaError_t err) {
    return err == cudaErrorMemoryAllocation ? "out of memory" : err == cudaSuccess ? "no error" : "invalid use";
}

//
// memory
//

static void * remember(void * p, size_t size, int device) {
    gpu().memory[(uint64_t) p] = { (uint64_t) p + size, device };
    return p;
}

static void forget(const char * who, void * p) {
    if (gpu().memory.erase((uint64_t) p) == 0) {
        fail(who, "memory that is not there", (uint64_t) p, 0);
    }
}

cudaError_t cudaMalloc(void ** p, size_t size) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    const size_t whole = (size + 511) / 512 * 512;
    const int device   = ptx_chosen_device();
    *p                 = nullptr;
    if (gpu().used[device] + whole > gpu().size || posix_memalign(p, 512, whole) != 0) {
        return result(cudaErrorMemoryAllocation);
    }
    memset(*p, 0xFF, whole); // NaN
    remember(*p, whole, device);
    gpu().used[device] += whole;
    return cudaSuccess;
}

// waits for what uses it
cudaError_t cudaFree(void * p) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    if (const auto * found = find_allocation((uint64_t) p)) {
        const int device = found->second.device;
        ptx_finish_device(device);
        gpu().used[device] -= found->second.end - found->first;
    }
    if (p) {
        forget("cudaFree", p);
        free(p);
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t * available, size_t * total) {
    *total     = gpu().size;
    *available = gpu().size - gpu().used[ptx_chosen_device()];
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void ** p, size_t size) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    if (posix_memalign(p, 4096, size) != 0) {
        return result(cudaErrorMemoryAllocation);
    }
    remember(*p, size, -1);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void * p) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    ptx_finish_all();
    forget("cudaFreeHost", p);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void * p, size_t size, unsigned) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    remember(p, size, -1);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void * p) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    ptx_finish_all();
    forget("cudaHostUnregister", p);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void * p, int value, size_t size, cudaStream_t stream) {
    ptx_submit(stream, [=] { memset(p, value, size); });
    return cudaSuccess;
}

// ggml counts on it to be done by the time that other streams need it
cudaError_t cudaMemset(void * p, int value, size_t size) {
    cudaMemsetAsync(p, value, size, nullptr);
    ptx_finish(nullptr);
    return cudaSuccess;
}

static void copy_rows(void * to, size_t to_pitch, const void * from, size_t from_pitch, size_t width, size_t height) {
    for (size_t i = 0; i < height; ++i) {
        memmove((char *) to + i * to_pitch, (const char *) from + i * from_pitch, width);
    }
}

// Host memory that is not page-locked is read before the call returns, and the call returns after it was written.
cudaError_t cudaMemcpy2DAsync(void * to, size_t to_pitch, const void * from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    if (!find_allocation((uint64_t) to)) {
        ptx_finish(stream);
        copy_rows(to, to_pitch, from, from_pitch, width, height);
    } else if (!find_allocation((uint64_t) from)) {
        const auto bytes = std::make_shared<std::vector<char>>(width * height);
        copy_rows(bytes->data(), width, from, from_pitch, width, height);
        ptx_submit(stream, [=] { copy_rows(to, to_pitch, bytes->data(), width, width, height); });
    } else {
        ptx_submit(stream, [=] { copy_rows(to, to_pitch, from, from_pitch, width, height); });
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void * to, const void * from, size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, size, from, size, size, 1, kind, stream);
}

cudaError_t cudaMemcpyPeerAsync(void * to, int, const void * from, int, size_t size, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, stream);
}
}

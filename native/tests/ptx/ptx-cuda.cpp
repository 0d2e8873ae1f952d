// The part of the CUDA runtime that ggml uses, on a machine without a GPU: device memory is the host's, a stream does
// at once what it is told, a captured graph is a list of what to do, and kernels run lane by lane (ptx-warp.h).
// To be preloaded; takes the place of libcudart's functions.
//
//   HEADKV_PTX_MIB       memory of the device (81920)
//   HEADKV_PTX_CACHE     folder of the compiled kernels (headkv-ptx in the folder for temporary files)
//   HEADKV_PTX_LOG       file to which the number of launches of each kernel is appended at the end

#include "ptx-jit.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#undef cudaGetDeviceProperties

struct kernel_name {
    void ** module;
    std::string name;
};

using graph = std::vector<std::function<void()>>;

// one device, never destroyed: kernels are registered before main() and the log is written after it
struct device {
    std::recursive_mutex mutex;
    std::map<const void *, kernel_name> names; // by the host's stub
    std::map<std::string, long> launches;
    std::map<uint64_t, uint64_t> memory; // begin, end
    size_t used       = 0;
    size_t size       = 0;
    graph * capture   = nullptr;
    cudaError_t error = cudaSuccess;

    device() {
        const char * mib = getenv("HEADKV_PTX_MIB");
        size             = (mib ? strtoull(mib, nullptr, 10) : 81920) << 20;
    }
};

static device & gpu() {
    static device & res = *new device;
    return res;
}

static constexpr size_t smem_per_block = 227 * 1024;

static cudaError_t result(cudaError_t err) {
    if (err != cudaSuccess) {
        gpu().error = err;
    }
    return err;
}

static void submit(const std::function<void()> & work) {
    if (gpu().capture) {
        gpu().capture->push_back(work);
    } else {
        work();
    }
}

static bool find_memory(uint64_t address, uint64_t & begin, uint64_t & end) {
    auto it = gpu().memory.upper_bound(address);
    if (it == gpu().memory.begin()) {
        return false;
    }
    --it;
    begin = it->first;
    end   = it->second;
    return address < end;
}

static void fail(const char * kernel, const char * what, uint64_t address, uint64_t size) {
    fprintf(stderr, "ptx: %s: %s: 0x%llx, %llu\n", kernel, what, (unsigned long long) address,
            (unsigned long long) size);
    abort();
}

static char * shared_memory(size_t size) {
    static char * memory =
        (char *) mmap(nullptr, smem_per_block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (memory == MAP_FAILED || size > smem_per_block) {
        fail("a block", "so much shared memory cannot be had", 0, size);
    }
    return memory;
}

static cudaError_t launch(const void * stub, dim3 grid, dim3 block, void ** args, size_t smem) {
    std::lock_guard<std::recursive_mutex> lock(gpu().mutex);

    const auto & name = gpu().names.at(stub);
    const auto & k    = ptx_find_kernel(name.module, name.name.c_str());

    std::string params(k.params_size, 0);
    for (int i = 0; i < k.n_params; ++i) {
        memcpy(&params[k.param_offsets[i]], args[i], k.param_sizes[i]);
    }
    submit([=, &k] {
        static const ptx_host host = { find_memory, fail, shared_memory };
        gpu().launches[k.name]++;
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

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void ** args, size_t smem, cudaStream_t) {
    return launch(kernel, grid, block, args, smem);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t * config, const void * stub, void ** args) {
    return launch(stub, config->gridDim, config->blockDim, args, config->dynamicSmemBytes);
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
// the device
//

cudaError_t cudaGetDeviceCount(int * n) {
    const char * visible = getenv("CUDA_VISIBLE_DEVICES");
    *n                   = visible && !*visible ? 0 : 1;
    return result(*n ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int * id) {
    *id = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned) {
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char * name, int size, int) {
    snprintf(name, size, "0000:00:00.0");
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

cudaError_t cudaMalloc(void ** p, size_t size) {
    std::lock_guard<std::recursive_mutex> lock(gpu().mutex);
    const size_t whole = (size + 511) / 512 * 512;
    *p                 = nullptr;
    if (gpu().used + whole > gpu().size || posix_memalign(p, 512, whole) != 0) {
        return result(cudaErrorMemoryAllocation);
    }
    memset(*p, 0xFF, whole); // NaN
    gpu().memory[(uint64_t) *p]  = (uint64_t) *p + whole;
    gpu().used                  += whole;
    return cudaSuccess;
}

cudaError_t cudaFree(void * p) {
    std::lock_guard<std::recursive_mutex> lock(gpu().mutex);
    if (p) {
        const auto it = gpu().memory.find((uint64_t) p);
        if (it == gpu().memory.end()) {
            fail("cudaFree", "memory that is not there", (uint64_t) p, 0);
        }
        gpu().used -= it->second - it->first;
        gpu().memory.erase(it);
        free(p);
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t * available, size_t * total) {
    *total     = gpu().size;
    *available = gpu().size - gpu().used;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void ** p, size_t size) {
    return result(posix_memalign(p, 4096, size) == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void * p) {
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *, size_t, unsigned) {
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *) {
    return cudaSuccess;
}

cudaError_t cudaMemset(void * p, int value, size_t size) {
    memset(p, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void * p, int value, size_t size, cudaStream_t) {
    submit([=] { memset(p, value, size); });
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void * to, const void * from, size_t size, cudaMemcpyKind, cudaStream_t) {
    submit([=] { memmove(to, from, size); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void * to, size_t to_pitch, const void * from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
    submit([=] {
        for (size_t i = 0; i < height; ++i) {
            memmove((char *) to + i * to_pitch, (const char *) from + i * from_pitch, width);
        }
    });
    return cudaSuccess;
}

//
// streams, events, graphs
//

cudaError_t cudaStreamCreateWithFlags(cudaStream_t * stream, unsigned) {
    *stream = (cudaStream_t) malloc(1);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t * event, unsigned) {
    *event = (cudaEvent_t) malloc(1);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    gpu().capture = new graph;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t * captured) {
    *captured     = (cudaGraph_t) gpu().capture;
    gpu().capture = nullptr;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus * status) {
    *status = gpu().capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t * instance, cudaGraph_t captured, unsigned long long) {
    *instance = (cudaGraphExec_t) new graph(*(graph *) captured);
    return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t instance, cudaGraph_t captured, cudaGraphExecUpdateResultInfo *) {
    *(graph *) instance = *(graph *) captured;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t captured) {
    delete (graph *) captured;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) {
    delete (graph *) instance;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t) {
    gpu().launches["(replayed graphs)"]++;
    for (const auto & work : *(graph *) instance) {
        work();
    }
    return cudaSuccess;
}
}

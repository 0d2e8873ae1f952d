// The part of the CUDA runtime that is about order: streams, events, captured graphs.

#include "stream.h"

#include <stdio.h>
#include <stdlib.h>

#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

using graph = std::vector<ptx_work>;

struct stream {
    int device;
    std::deque<ptx_work> work;
    uint64_t n_done = 0;
    graph * capture = nullptr;

    uint64_t n_submitted() const { return n_done + work.size(); }
};

// a place in a stream
struct event {
    int device;
    stream * where = nullptr; // not recorded yet
    uint64_t n     = 0;
};

static thread_local int chosen = 0;
static int working             = 0;

// never destroyed, so that events can name any; by the order in which they were made
static std::vector<stream *> & streams() {
    static auto & res = *new std::vector<stream *>;
    return res;
}

std::recursive_mutex & ptx_mutex() {
    static auto & res = *new std::recursive_mutex;
    return res;
}

void ptx_fail(const char * who, const char * what) {
    fprintf(stderr, "ptx: %s: %s\n", who, what);
    abort();
}

int ptx_chosen_device() {
    return chosen;
}

int ptx_working_device() {
    return working;
}

static stream * make_stream(int device) {
    streams().push_back(new stream{ device, {} });
    return streams().back();
}

// the default ones are a device's, or a device's and a thread's
static stream & find_stream(cudaStream_t handle) {
    if (handle && handle != cudaStreamLegacy && handle != cudaStreamPerThread) {
        return *(stream *) handle;
    }
    static auto & defaults = *new std::map<std::tuple<int, bool, std::thread::id>, stream *>;
    const bool per_thread  = handle == cudaStreamPerThread;
    const auto thread      = per_thread ? std::this_thread::get_id() : std::thread::id();
    stream *& res          = defaults[{ chosen, per_thread, thread }];
    return *(res ? res : res = make_stream(chosen));
}

static void finish(stream & s, uint64_t n) {
    while (s.n_done < n) {
        const ptx_work next = std::move(s.work.front());
        s.work.pop_front();
        s.n_done++;

        const int before = working;
        working          = s.device;
        next();
        working = before;
    }
}

void ptx_submit(cudaStream_t handle, ptx_work work) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    stream & s = find_stream(handle);
    if (s.capture) {
        s.capture->push_back(std::move(work));
    } else {
        s.work.push_back(std::move(work));
    }
}

void ptx_submit_kernel(cudaStream_t handle, const char * name, ptx_work work) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    if (find_stream(handle).device != chosen) {
        ptx_fail(name, "launched on the stream of a device that is not the chosen one");
    }
    ptx_submit(handle, std::move(work));
}

void ptx_finish(cudaStream_t handle) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    stream & s = find_stream(handle);
    if (s.capture) {
        ptx_fail("a stream", "waited for while it is captured");
    }
    finish(s, s.n_submitted());
}

void ptx_finish_device(int device) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    for (size_t i = 0; i < streams().size(); ++i) {
        if (streams()[i]->device == device) {
            finish(*streams()[i], streams()[i]->n_submitted());
        }
    }
}

void ptx_finish_all() {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    for (size_t i = 0; i < streams().size(); ++i) {
        finish(*streams()[i], streams()[i]->n_submitted());
    }
}

extern "C" {

cudaError_t cudaGetDevice(int * id) {
    *id = chosen;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int id) {
    int n_devices;
    const cudaError_t err = cudaGetDeviceCount(&n_devices);
    if (err != cudaSuccess || id < 0 || id >= n_devices) {
        return cudaErrorInvalidDevice;
    }
    chosen = id;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    ptx_finish_device(chosen);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t * handle, unsigned) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    *handle = (cudaStream_t) make_stream(chosen);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    ptx_finish(handle);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    ptx_finish(handle);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t * handle, unsigned) {
    *handle = (cudaEvent_t) new event{ chosen };
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    delete (event *) handle;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    auto & e = *(event *) handle;
    auto & s = find_stream(on);
    if (s.device != e.device) {
        ptx_fail("an event", "recorded on the stream of another device");
    }
    if (s.capture) {
        ptx_fail("an event", "recorded on a captured stream, which is not known here");
    }
    e.where = &s;
    e.n     = s.n_submitted();
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t waiting, cudaEvent_t handle, unsigned) {
    const event e = *(event *) handle;
    if (e.where) {
        ptx_submit(waiting, [e] { finish(*e.where, e.n); });
    }
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    const auto & e = *(event *) handle;
    if (e.where) {
        finish(*e.where, e.n);
    }
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    find_stream(handle).capture = new graph;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t * captured) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    auto & s  = find_stream(handle);
    *captured = (cudaGraph_t) s.capture;
    s.capture = nullptr;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus * status) {
    std::lock_guard<std::recursive_mutex> lock(ptx_mutex());
    *status = find_stream(handle).capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

// an instance shares its list with the launches that have not been done yet
using instance = std::shared_ptr<const graph>;

cudaError_t cudaGraphInstantiate(cudaGraphExec_t * handle, cudaGraph_t captured, unsigned long long) {
    *handle = (cudaGraphExec_t) new instance(new graph(*(graph *) captured));
    return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t handle, cudaGraph_t captured, cudaGraphExecUpdateResultInfo *) {
    *(instance *) handle = std::make_shared<const graph>(*(graph *) captured);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t captured) {
    delete (graph *) captured;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
    delete (instance *) handle;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t on) {
    ptx_submit_kernel(on, "a graph", [all = *(instance *) handle] {
        ptx_count("(replayed graphs)");
        for (const auto & work : *all) {
            work();
        }
    });
    return cudaSuccess;
}
}

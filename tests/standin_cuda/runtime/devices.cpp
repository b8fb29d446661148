// Devices, errors, and what the stand-in says it cannot do.
#include "model.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

using namespace standin;

CUDA_API cudaError_t cudaGetDeviceCount(int* n) {
    *n = n_devices();
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}

// Since CUDA 12 this makes the device's context, and so is a use of it.
CUDA_API cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= n_devices()) return fail(cudaErrorInvalidDevice);
    current_device = device;
    Lock lock(state.lock);
    MUST(enter("cudaSetDevice"));
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {};
    strcpy(properties->name, "stand-in runtime (no GPU)");
    properties->totalGlobalMem = memory_bytes();
    properties->major = 9;  // what torch asks before it chooses kernels
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->sharedMemPerMultiprocessor = 228 << 10;
    properties->regsPerBlock = 64 << 10;
    properties->l2CacheSize = 50 << 20;
    for (int& size : properties->maxThreadsDim) size = 1024;
    for (int& size : properties->maxGridSize) size = 65535;
    properties->maxGridSize[0] = 2147483647;
    properties->asyncEngineCount = 3;
    properties->unifiedAddressing = 1;
    properties->canMapHostMemory = 1;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
             : attribute == cudaDevAttrComputeCapabilityMinor ? 0
             : attribute == cudaDevAttrMultiProcessorCount    ? 132
                                                              : 1024;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaDeviceGetPCIBusId(char* id, int n, int device) {
    snprintf(id, n, "0000:%02x:00.0", device + 1);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 0;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

CUDA_API cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

CUDA_API cudaError_t cudaProfilerStart() { return cudaSuccess; }
CUDA_API cudaError_t cudaProfilerStop() { return cudaSuccess; }

// Errors. A sticky one stays whoever asks, as after an illegal address: CUDA's own needs a new process.

CUDA_API cudaError_t cudaPeekAtLastError() {
    return state.sticky != cudaSuccess ? state.sticky : last_error;
}

CUDA_API cudaError_t cudaGetLastError() {
    const cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

namespace {

struct Text {
    cudaError_t error;
    const char *name, *text;
};

const Text texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};
const Text other = {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"};

const Text& find_text(cudaError_t error) {
    for (const Text& text : texts)
        if (text.error == error) return text;
    return other;
}

}  // namespace

CUDA_API const char* cudaGetErrorName(cudaError_t error) { return find_text(error).name; }
CUDA_API const char* cudaGetErrorString(cudaError_t error) { return find_text(error).text; }

// The driver's functions, which torch looks up by name; those that are not there answer "not supported".

CUDA_API int standin_missing_driver_function() { return cudaErrorNotSupported; }

CUDA_API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                      unsigned long long,
                                                      cudaDriverEntryPointQueryResult* found) {
    void* driver = dlopen("libcuda.so.1", RTLD_NOW);
    *function = driver ? dlsym(driver, name) : nullptr;
    if (!*function) *function = reinterpret_cast<void*>(&standin_missing_driver_function);
    if (found) *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

#define UNSUPPORTED(name, ...) \
    CUDA_API cudaError_t name(__VA_ARGS__) { return fail(cudaErrorNotSupported); }

UNSUPPORTED(cudaMallocAsync, void**, size_t, cudaStream_t)
UNSUPPORTED(cudaFreeAsync, void*, cudaStream_t)
UNSUPPORTED(cudaMemcpy2DAsync, void*, size_t, const void*, size_t, size_t, size_t, cudaMemcpyKind,
            cudaStream_t)
UNSUPPORTED(cudaDeviceGetDefaultMemPool, cudaMemPool_t*, int)
UNSUPPORTED(cudaMemPoolGetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
UNSUPPORTED(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
UNSUPPORTED(cudaMemPoolSetAccess, cudaMemPool_t, const cudaMemAccessDesc*, size_t)
UNSUPPORTED(cudaMemPoolTrimTo, cudaMemPool_t, size_t)
UNSUPPORTED(cudaIpcCloseMemHandle, void*)
UNSUPPORTED(cudaIpcGetMemHandle, cudaIpcMemHandle_t*, void*)
UNSUPPORTED(cudaIpcOpenMemHandle, void**, cudaIpcMemHandle_t, unsigned)
UNSUPPORTED(cudaIpcGetEventHandle, cudaIpcEventHandle_t*, cudaEvent_t)
UNSUPPORTED(cudaIpcOpenEventHandle, cudaEvent_t*, cudaIpcEventHandle_t)

// Launches. torch's own kernels are machine code for a GPU and cannot run here: operators come from
// Python (operators.py) and reach a stream through `standin_enqueue`. A kernel that torch launches all
// the same does nothing, and its name is kept, except for sleeps.
#include "model.h"

#include <cstdio>
#include <unordered_map>

using namespace standin;

namespace {

struct Configuration {
    dim3 grid, block;
    size_t shared_bytes;
    void* stream;
};

thread_local std::vector<Configuration> configurations;
std::unordered_map<const void*, std::string> kernel_names;  // guarded by state.lock

// torch.cuda._sleep holds its stream up: while anything else can run, its stream is passed over, more
// often the longer it sleeps. Nobody who waits for the stream waits longer.
int rounds_of(long cycles) {
    const long rounds = cycles / 100'000;
    return static_cast<int>(rounds < 1 ? 1 : rounds > 200 ? 200 : rounds);
}

cudaError_t launch(const void* kernel, void** arguments, cudaStream_t handle) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter("kernel launch"));
    Stream* stream = find_stream(handle);
    if (!stream || stream->device != current_device) return fail(cudaErrorInvalidResourceHandle);
    const std::string& name = kernel_names[kernel];
    if (name.find("spin_kernel") != std::string::npos) {
        const long cycles = *static_cast<long*>(arguments[0]);
        enqueue(stream, {Operation::Sleep, nullptr, nullptr, rounds_of(cycles)});
    } else {
        if (state.unknown_kernels.insert(name).second && option("STANDIN_CUDA_LOG", 1))
            fprintf(stderr, "stand-in CUDA runtime: no kernel %.200s\n", name.c_str());
        enqueue(stream, {Operation::Run, [] {}, nullptr});
    }
    let_some_run(lock);
    return cudaSuccess;
}

}  // namespace

CUDA_API cudaError_t __cudaLaunchKernel(const void* kernel, dim3, dim3, void** arguments, size_t,
                                        cudaStream_t stream) {
    return launch(kernel, arguments, stream);
}

CUDA_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* kernel,
                                         void** arguments) {
    return launch(kernel, arguments, configuration->stream);
}

CUDA_API cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* argument) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter("cudaLaunchHostFunc"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    enqueue(stream, {Operation::Run, [=] { function(argument); }, nullptr});
    let_some_run(lock);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function,
                                           void* argument, unsigned) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter("cudaStreamAddCallback"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    enqueue(stream, {Operation::Run, [=] { function(handle, cudaSuccess, argument); }, nullptr});
    let_some_run(lock);
    return cudaSuccess;
}

// What the compiler writes around kernels: registration, and `<<<…>>>`.

CUDA_API void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
CUDA_API void __cudaRegisterFatBinaryEnd(void**) {}
CUDA_API void __cudaUnregisterFatBinary(void**) {}
CUDA_API char __cudaInitModule(void**) { return 1; }
CUDA_API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

CUDA_API void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, uint3*,
                                     uint3*, dim3*, dim3*, int*) {
    Lock lock(state.lock);
    kernel_names[kernel] = name;
}

CUDA_API cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* kernel) {
    *handle = reinterpret_cast<cudaKernel_t>(const_cast<void*>(kernel));
    return cudaSuccess;
}

CUDA_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
    configurations.push_back({grid, block, shared_bytes, stream});
    return 0;
}

CUDA_API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                                void* stream) {
    const Configuration last = configurations.back();
    configurations.pop_back();
    *grid = last.grid;
    *block = last.block;
    *shared_bytes = last.shared_bytes;
    *static_cast<void**>(stream) = last.stream;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->binaryVersion = 90;
    attributes->ptxVersion = 90;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

CUDA_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int,
                                                                            size_t, unsigned) {
    *n = 2;
    return cudaSuccess;
}

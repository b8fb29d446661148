// What tests ask of the stand-in, and tell it (../controls.py).
#include "model.h"

#include <cstring>

using namespace standin;

// A Python function as an operation of a stream. It takes the GIL when it runs, in whichever thread that
// is: hence the block without it here.
CUDA_API void standin_enqueue(void* handle, int device, void (*function)(long), long argument) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    auto* stream = handle ? static_cast<Stream*>(handle) : default_stream(device);
    if (stream->is_destroyed) stop("an operator was called on a stream that was destroyed");
    state.counts["operators"]++;
    enqueue(stream, {Operation::Run, [=] { function(argument); }, nullptr});
    let_some_run(lock);
}

CUDA_API void standin_reseed(int seed, int mode) {
    Lock lock(state.lock);
    state.mode = static_cast<Mode>(mode);
    state.random.seed(seed);
    for (Stream* stream : state.streams) draw_eagerness(stream);
}

// How often a function was called, by its name.
CUDA_API long standin_count(const char* name) {
    Lock lock(state.lock);
    long n = 0;
    for (const auto& [counted, times] : state.counts)
        if (!strcmp(counted, name)) n += times;
    return n;
}

// How many calls were made while a device was the calling thread's current one.
CUDA_API long standin_uses(int device) {
    Lock lock(state.lock);
    return state.uses[device];
}

CUDA_API long standin_pending() {
    Lock lock(state.lock);
    long n = 0;
    for (const Stream* stream : state.streams) n += static_cast<long>(stream->queue.size());
    return n;
}

CUDA_API long standin_unknown_kernels() {
    Lock lock(state.lock);
    return static_cast<long>(state.unknown_kernels.size());
}

// From here on every call fails with this error; 0 mends the device again, which CUDA cannot.
CUDA_API void standin_break(int error) {
    Lock lock(state.lock);
    state.sticky = static_cast<cudaError_t>(error);
    if (error == 0) last_error = cudaSuccess;
}

// Streams, events, graph capture.
#include "model.h"

#include <pthread.h>

#include <algorithm>

using namespace standin;

CUDA_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned, int priority) {
    Lock lock(state.lock);
    MUST(enter("cudaStreamCreate"));
    auto* stream = new Stream{current_device, priority};
    draw_eagerness(stream);
    state.streams.insert(stream);
    *handle = reinterpret_cast<cudaStream_t>(stream);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
    return cudaStreamCreateWithPriority(handle, flags, 0);
}

CUDA_API cudaError_t cudaStreamCreate(cudaStream_t* handle) {
    return cudaStreamCreateWithPriority(handle, 0, 0);
}

// What was asked of the stream is still done; the handle is good for nothing any more. Its memory stays,
// so that a later use is told from one of a new stream.
CUDA_API cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    Lock lock(state.lock);
    MUST(enter("cudaStreamDestroy"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    stream->is_destroyed = true;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
    Lock lock(state.lock);
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    *priority = stream->priority;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaStreamQuery(cudaStream_t handle) {
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaStreamQuery"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    return stream->queue.empty() && !stream->is_busy ? cudaSuccess : fail(cudaErrorNotReady);
}

CUDA_API cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaStreamSynchronize"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    drain(stream, lock);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaDeviceSynchronize() {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaDeviceSynchronize"));
    drain_device(current_device, lock);
    return cudaSuccess;
}

// Events

CUDA_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
    Lock lock(state.lock);
    MUST(enter("cudaEventCreate"));
    *handle = reinterpret_cast<cudaEvent_t>(new Event{flags, current_device});
    return cudaSuccess;
}

CUDA_API cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, 0); }

// Waits that were made keep what they wait for. As with streams, the handle's memory stays: an event is
// some tens of bytes, and a use after this is an error instead of somebody else's event.
CUDA_API cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    Lock lock(state.lock);
    MUST(enter("cudaEventDestroy"));
    Event* event = find_event(handle);
    if (!event) return fail(cudaErrorInvalidResourceHandle);
    event->is_destroyed = true;
    event->recording.reset();
    return cudaSuccess;
}

CUDA_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle, unsigned) {
    Lock lock(state.lock);
    MUST(enter("cudaEventRecord"));
    Event* event = find_event(handle);
    Stream* stream = find_stream(stream_handle);
    if (!event || !stream || event->device != stream->device)
        return fail(cudaErrorInvalidResourceHandle);
    event->recording = mark(stream);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
    return cudaEventRecordWithFlags(handle, stream, 0);
}

// Waits for the recording that there is now; for nothing where there is none.
CUDA_API cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned) {
    Lock lock(state.lock);
    MUST(enter("cudaStreamWaitEvent"));
    Event* event = find_event(handle);
    Stream* stream = find_stream(stream_handle);
    if (!event || !stream) return fail(cudaErrorInvalidResourceHandle);
    const auto& recording = event->recording;
    if (!recording || recording->done) return cudaSuccess;
    if (recording->stream != stream && recording->stream->is_capturing() && !stream->is_capturing())
        stop("a capture that goes on on a second stream is not modelled");
    enqueue(stream, {Operation::Wait, nullptr, recording});
    return cudaSuccess;
}

CUDA_API cudaError_t cudaEventQuery(cudaEvent_t handle) {
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaEventQuery"));
    Event* event = find_event(handle);
    if (!event) return fail(cudaErrorInvalidResourceHandle);
    return !event->recording || event->recording->done ? cudaSuccess : fail(cudaErrorNotReady);
}

CUDA_API cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaEventSynchronize"));
    Event* event = find_event(handle);
    if (!event) return fail(cudaErrorInvalidResourceHandle);
    const auto recording = event->recording;  // another thread may record it again meanwhile
    if (recording) wait_for(recording, lock);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t first, cudaEvent_t second) {
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaEventElapsedTime"));
    Event *from = find_event(first), *to = find_event(second);
    if (!from || !to || from->device != to->device) return fail(cudaErrorInvalidResourceHandle);
    if ((from->flags | to->flags) & cudaEventDisableTiming) return fail(cudaErrorInvalidResourceHandle);
    if (!from->recording || !to->recording) return fail(cudaErrorInvalidResourceHandle);
    if (!from->recording->done || !to->recording->done) return fail(cudaErrorNotReady);
    *ms = static_cast<float>(std::max(1e-3, 1e3 * (to->recording->secs - from->recording->secs)));
    return cudaSuccess;
}

// Graph capture: of one stream; operations of a graph run again in the order they were captured.

CUDA_API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    Lock lock(state.lock);
    MUST(enter("cudaStreamBeginCapture"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    if (stream == default_stream(stream->device)) return fail(cudaErrorStreamCaptureUnsupported);
    stream->graph = new Graph;
    stream->capture_mode = mode;
    stream->capturing_thread = pthread_self();
    stream->is_invalidated = false;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    Lock lock(state.lock);
    MUST(enter("cudaStreamEndCapture"));
    Stream* stream = find_stream(handle);
    if (!stream || !stream->is_capturing()) return fail(cudaErrorIllegalState);
    *graph = stream->is_invalidated ? nullptr : reinterpret_cast<cudaGraph_t>(stream->graph);
    stream->graph = nullptr;
    return stream->is_invalidated ? fail(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

static cudaStreamCaptureStatus status_of(const Stream* stream) {
    if (!stream->is_capturing()) return cudaStreamCaptureStatusNone;
    return stream->is_invalidated ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

CUDA_API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    Lock lock(state.lock);
    MUST(enter("cudaStreamIsCapturing"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    *status = status_of(stream);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                              unsigned long long* id, cudaGraph_t* graph,
                                              const cudaGraphNode_t** nodes,
                                              const cudaGraphEdgeData** edges, size_t* n_nodes) {
    Lock lock(state.lock);
    MUST(enter("cudaStreamGetCaptureInfo"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    *status = status_of(stream);
    if (id) *id = stream->is_capturing() ? 1 : 0;
    if (graph) *graph = reinterpret_cast<cudaGraph_t>(stream->graph);
    if (nodes) *nodes = nullptr;
    if (edges) *edges = nullptr;
    if (n_nodes) *n_nodes = 0;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                   unsigned long long) {
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter("cudaGraphLaunch"));
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    for (const Operation& operation : reinterpret_cast<Graph*>(executable)->operations)
        if (operation.kind == Operation::Run) enqueue(stream, operation);
    let_some_run(lock);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Graph*>(graph);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<Graph*>(executable);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* n_nodes) {
    *n_nodes = reinterpret_cast<Graph*>(graph)->operations.size();
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*,
                                                  size_t* n_nodes) {
    *n_nodes = 0;
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char*, unsigned) { return cudaSuccess; }

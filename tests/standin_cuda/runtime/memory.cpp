// Memory and copies: device and pinned memory are both mapped host memory.
#include "model.h"

#include <sys/mman.h>

#include <cstring>

using namespace standin;

namespace {

constexpr size_t page_bytes = 4096;
constexpr size_t largest_poisoned = 64u << 20;

size_t whole_pages(size_t n_bytes) {
    return n_bytes ? (n_bytes + page_bytes - 1) / page_bytes * page_bytes : page_bytes;
}

// Fresh memory holds a pattern: what is read before it is written does not look like zeros.
char* map_pages(size_t n_bytes) {
    const size_t size = whole_pages(n_bytes);
    void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return nullptr;
    if (n_bytes <= largest_poisoned && option("STANDIN_CUDA_POISON", 1) && state.mode != Mode::Free)
        memset(address, 0xA7, size);
    return static_cast<char*>(address);
}

// Freed addresses are never handed out again and may not be touched: an operation that comes too late
// ends the process, where it would be an illegal address on a GPU.
void unmap_pages(char* address, size_t n_bytes) {
    mmap(address, whole_pages(n_bytes), PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
}

cudaError_t allocate(void** address, size_t n_bytes, bool is_pinned_host) {
    size_t& used = state.device_bytes[current_device];
    *address = nullptr;
    if (!is_pinned_host && used + n_bytes > memory_bytes()) return fail(cudaErrorMemoryAllocation);
    char* memory = map_pages(n_bytes);
    if (!memory) return fail(cudaErrorMemoryAllocation);
    if (!is_pinned_host) used += n_bytes;
    state.allocations[memory] = {n_bytes, is_pinned_host, false, current_device};
    *address = memory;
    return cudaSuccess;
}

// cudaFree and cudaFreeHost wait for everything that was asked of the device, as CUDA's do.
cudaError_t release(void* address, Lock& lock) {
    if (!address) return cudaSuccess;
    auto found = state.allocations.find(static_cast<char*>(address));
    if (found == state.allocations.end() || found->second.is_registered)
        return fail(cudaErrorInvalidValue);
    drain_device(found->second.device, lock);
    found = state.allocations.find(static_cast<char*>(address));  // the lock was given up meanwhile
    if (found == state.allocations.end()) return fail(cudaErrorInvalidValue);
    if (!found->second.is_pinned_host) state.device_bytes[found->second.device] -= found->second.n_bytes;
    unmap_pages(found->first, found->second.n_bytes);
    state.allocations.erase(found);
    return cudaSuccess;
}

// A copy, in the order of its stream. What CUDA's documentation lets be either is modelled as the one
// that shows more: an upload from pageable memory takes its bytes at once and arrives late; what it
// may block is only counted. A copy to pageable memory blocks until it is done.
cudaError_t copy(void* target, const void* source, size_t n_bytes, Stream* stream, Lock& lock) {
    must_lie_inside(target, n_bytes, "a copy to memory");
    must_lie_inside(source, n_bytes, "a copy from memory");
    const bool to_pageable = find_allocation(target) == state.allocations.end();
    const bool from_pageable = find_allocation(source) == state.allocations.end();
    if (stream->is_capturing() && (to_pageable || from_pageable))
        return fail(cudaErrorStreamCaptureUnsupported);
    if (from_pageable) {
        state.counts["copies from pageable memory"]++;
        auto* bytes = static_cast<const char*>(source);
        auto held = std::make_shared<std::vector<char>>(bytes, bytes + n_bytes);
        enqueue(stream, {Operation::Run, [=] { memcpy(target, held->data(), n_bytes); }, nullptr});
    } else {
        enqueue(stream, {Operation::Run, [=] { memcpy(target, source, n_bytes); }, nullptr});
    }
    if (to_pageable) {
        state.counts["copies to pageable memory"]++;
        drain(stream, lock);
    }
    let_some_run(lock);
    return cudaSuccess;
}

}  // namespace

CUDA_API cudaError_t cudaMalloc(void** address, size_t n_bytes) {
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaMalloc"));
    return allocate(address, n_bytes, false);
}

CUDA_API cudaError_t cudaHostAlloc(void** address, size_t n_bytes, unsigned) {
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaHostAlloc"));
    return allocate(address, n_bytes, true);
}

CUDA_API cudaError_t cudaFree(void* address) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaFree"));
    return release(address, lock);
}

CUDA_API cudaError_t cudaFreeHost(void* address) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaFreeHost"));
    return release(address, lock);
}

CUDA_API cudaError_t cudaHostRegister(void* address, size_t n_bytes, unsigned) {
    Lock lock(state.lock);
    MUST(enter("cudaHostRegister"));
    state.allocations[static_cast<char*>(address)] = {n_bytes, true, true, current_device};
    return cudaSuccess;
}

CUDA_API cudaError_t cudaHostUnregister(void* address) {
    Lock lock(state.lock);
    MUST(enter("cudaHostUnregister"));
    state.allocations.erase(static_cast<char*>(address));
    return cudaSuccess;
}

CUDA_API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    Lock lock(state.lock);
    MUST(enter("cudaMemGetInfo"));
    *total = memory_bytes();
    *free = *total - state.device_bytes[current_device];
    return cudaSuccess;
}

CUDA_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    Lock lock(state.lock);
    MUST(enter("cudaPointerGetAttributes"));
    *attributes = {};
    attributes->hostPointer = const_cast<void*>(address);
    auto found = find_allocation(address);
    if (found == state.allocations.end()) {
        attributes->type = cudaMemoryTypeUnregistered;
        attributes->device = cudaInvalidDeviceId;
        return cudaSuccess;
    }
    attributes->type = found->second.is_pinned_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = found->second.device;
    attributes->devicePointer = const_cast<void*>(address);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t n_bytes, cudaMemcpyKind,
                                     cudaStream_t handle) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter("cudaMemcpyAsync"));
    Stream* stream = find_stream(handle);
    return stream ? copy(target, source, n_bytes, stream, lock) : fail(cudaErrorInvalidResourceHandle);
}

CUDA_API cudaError_t cudaMemcpy(void* target, const void* source, size_t n_bytes, cudaMemcpyKind) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter_unsafe("cudaMemcpy"));
    Stream* stream = default_stream(current_device);
    MUST(copy(target, source, n_bytes, stream, lock));
    drain(stream, lock);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaMemcpyPeerAsync(void* target, int, const void* source, int, size_t n_bytes,
                                         cudaStream_t handle) {
    return cudaMemcpyAsync(target, source, n_bytes, cudaMemcpyDefault, handle);
}

CUDA_API cudaError_t cudaMemsetAsync(void* address, int value, size_t n_bytes, cudaStream_t handle) {
    WithoutGil without_gil;
    Lock lock(state.lock);
    MUST(enter("cudaMemsetAsync"));
    must_lie_inside(address, n_bytes, "a memset");
    Stream* stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle);
    enqueue(stream, {Operation::Run, [=] { memset(address, value, n_bytes); }, nullptr});
    let_some_run(lock);
    return cudaSuccess;
}

CUDA_API cudaError_t cudaMemset(void* address, int value, size_t n_bytes) {
    return cudaMemsetAsync(address, value, n_bytes, nullptr);
}

CUDA_API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
    return cudaSuccess;
}

CUDA_API cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
    *address = const_cast<void*>(symbol);
    return cudaSuccess;
}

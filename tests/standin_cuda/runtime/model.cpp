// The scheduler: which operations of which streams run, when, and in which thread.
#include "model.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace standin {

State state;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

void read_options() {
    static bool is_read = false;
    if (is_read) return;
    is_read = true;
    const char* mode = getenv("STANDIN_CUDA_MODE");
    const std::string name = mode ? mode : "random";
    state.mode = name == "lazy"    ? Mode::Lazy
                 : name == "eager" ? Mode::Eager
                 : name == "free"  ? Mode::Free
                                   : Mode::Random;
    state.random.seed(option("STANDIN_CUDA_SEED", 0));
}

enum class Step { Empty, Blocked, Ran, Busy };

// Runs the next operation of a stream, in this thread.
//
// Two threads may want to advance one stream. The first takes the operation out of the queue and sets
// `is_busy`, under the lock; the second sees `Busy` and waits for `changed`. So operations of a stream
// never overlap, whichever threads run them, and those of two streams may.
Step advance(Stream* stream, Lock& lock, Stream** blocked_by, bool is_waited_for) {
    if (stream->is_busy) return Step::Busy;
    if (stream->queue.empty()) return Step::Empty;
    Operation& next = stream->queue.front();
    if (next.kind == Operation::Wait && !next.recording->done) {
        if (blocked_by) *blocked_by = next.recording->stream;
        return Step::Blocked;
    }
    if (next.kind == Operation::Sleep && !is_waited_for && next.rounds-- > 0) return Step::Blocked;
    Operation operation = std::move(next);
    stream->queue.pop_front();
    if (operation.kind == Operation::Mark) {
        operation.recording->done = true;
        operation.recording->secs = now();
    } else if (operation.kind == Operation::Run) {
        stream->is_busy = true;
        lock.unlock();
        operation.run();
        lock.lock();
        stream->is_busy = false;
    }
    state.changed.notify_all();
    return Step::Ran;
}

// Runs what `stream` needs, streams that it waits for included, until `is_done`.
void run_until(Stream* stream, Lock& lock, const std::function<bool()>& is_done) {
    int idle = 0;
    while (!is_done()) {
        Stream* at = stream;
        Step step;
        size_t depth = 0;
        while (true) {
            Stream* blocked_by = nullptr;
            step = advance(at, lock, &blocked_by, true);
            if (step != Step::Blocked) break;
            at = blocked_by;
            if (++depth > state.streams.size() + 1) stop("streams wait for one another in a circle");
        }
        if (step == Step::Busy) {  // another thread is running it, and says when it has
            state.changed.wait_for(lock, std::chrono::milliseconds(50));
        } else if (step == Step::Empty && !is_done()) {
            // Another thread has taken the last operation and not finished it, or it never comes.
            if (++idle > 500) stop("a thread waits for what nobody has asked for");
            state.changed.wait_for(lock, std::chrono::milliseconds(10));
        } else {
            idle = 0;
        }
    }
}

}  // namespace

WithoutGil::WithoutGil() {
    using Check = int (*)();
    using Save = void* (*)();
    static const auto check = reinterpret_cast<Check>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
    static const auto save = reinterpret_cast<Save>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
    if (check && save && check()) saved_ = save();
}

WithoutGil::~WithoutGil() {
    using Restore = void (*)(void*);
    static const auto restore = reinterpret_cast<Restore>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"));
    if (saved_) restore(saved_);
}

int option(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int n_devices() { return option("STANDIN_CUDA_DEVICES", 1); }

size_t memory_bytes() {
    static const size_t n_bytes = static_cast<size_t>(option("STANDIN_CUDA_GB", 8)) << 30;
    return n_bytes;
}

double now() {
    using Clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

void stop(const std::string& why) {
    fprintf(stderr, "stand-in CUDA runtime: %s\n", why.c_str());
    abort();
}

cudaError_t fail(cudaError_t error) { return last_error = error; }

cudaError_t enter(const char* name) {
    read_options();
    state.uses[current_device]++;
    state.counts[name]++;
    return state.sticky;
}

cudaError_t enter_unsafe(const char* name) {
    MUST(enter(name));
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    for (Stream* stream : state.streams) {
        if (!stream->is_capturing() || stream->capture_mode == cudaStreamCaptureModeRelaxed) continue;
        const bool is_mine = stream->capturing_thread == pthread_self();
        const bool is_global = stream->capture_mode == cudaStreamCaptureModeGlobal;
        if (is_mine || (is_global && thread_mode == cudaStreamCaptureModeGlobal)) {
            stream->is_invalidated = true;
            return cudaErrorStreamCaptureUnsupported;
        }
    }
    return cudaSuccess;
}

Stream* default_stream(int device) {
    read_options();
    Stream*& stream = state.default_streams[device];
    if (!stream) {
        stream = new Stream{device};
        draw_eagerness(stream);
        state.streams.insert(stream);
    }
    return stream;
}

Stream* find_stream(cudaStream_t handle) {
    if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
        return default_stream(current_device);
    auto* stream = reinterpret_cast<Stream*>(handle);
    return stream->is_destroyed ? nullptr : stream;
}

Event* find_event(cudaEvent_t handle) {
    auto* event = reinterpret_cast<Event*>(handle);
    return event->is_destroyed ? nullptr : event;
}

void draw_eagerness(Stream* stream) {
    static const double drawn[] = {0, 0, .05, .3, .8, 1};
    stream->eagerness = state.mode == Mode::Lazy    ? 0
                        : state.mode == Mode::Eager ? 1
                                                    : drawn[state.random() % 6];
}

void enqueue(Stream* stream, Operation operation) {
    if (stream->is_capturing()) {
        stream->graph->operations.push_back(std::move(operation));
    } else if (state.mode != Mode::Free) {
        stream->queue.push_back(std::move(operation));
    } else if (operation.kind == Operation::Mark) {
        operation.recording->done = true;
        operation.recording->secs = now();
    }
}

// After something was asked for: what the device does of its own accord, by the mode.
void let_some_run(Lock& lock) {
    if (state.mode == Mode::Lazy || state.mode == Mode::Free) return;
    const bool is_random = state.mode == Mode::Random;
    if (is_random && state.random() % 200 == 0)
        for (Stream* stream : state.streams) draw_eagerness(stream);
    std::vector<Stream*> streams(state.streams.begin(), state.streams.end());
    if (is_random) std::shuffle(streams.begin(), streams.end(), state.random);
    bool has_moved = true;
    while (has_moved) {
        has_moved = false;
        for (Stream* stream : streams) {
            while (stream->eagerness >= 1 || state.random() % 1000 < stream->eagerness * 1000) {
                if (advance(stream, lock, nullptr, false) != Step::Ran) break;
                has_moved = true;
            }
        }
        if (is_random) break;
    }
}

std::shared_ptr<Recording> mark(Stream* stream) {
    auto recording = std::make_shared<Recording>();
    recording->stream = stream;
    enqueue(stream, {Operation::Mark, nullptr, recording});
    return recording;
}

void wait_for(const std::shared_ptr<Recording>& recording, Lock& lock) {
    run_until(recording->stream, lock, [&] { return recording->done; });
}

void drain(Stream* stream, Lock& lock) {
    if (!stream->is_capturing()) wait_for(mark(stream), lock);
}

void drain_device(int device, Lock& lock) {
    const std::vector<Stream*> streams(state.streams.begin(), state.streams.end());
    for (Stream* stream : streams)
        if (stream->device == device) drain(stream, lock);
}

std::map<char*, Allocation>::iterator find_allocation(const void* address) {
    auto* at = static_cast<char*>(const_cast<void*>(address));
    auto found = state.allocations.upper_bound(at);
    if (found == state.allocations.begin()) return state.allocations.end();
    --found;
    return at < found->first + found->second.n_bytes ? found : state.allocations.end();
}

void must_lie_inside(const void* address, size_t n_bytes, const char* what) {
    auto found = find_allocation(address);
    if (found == state.allocations.end()) return;  // pageable memory, of which nothing is known
    if (static_cast<const char*>(address) + n_bytes > found->first + found->second.n_bytes)
        stop(std::string(what) + " of " + std::to_string(n_bytes) + " bytes runs past its allocation");
}

}  // namespace standin

using namespace standin;

CUDA_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}

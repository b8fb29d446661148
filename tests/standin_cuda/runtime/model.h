// What the stand-in knows of a machine with CUDA devices: streams of operations, events, memory.
//
// One lock, `state.lock`, guards all of it. It is given up in two places only: while an operation
// runs (`advance`), and while a thread waits for another to do something (`run_until`). Operations may
// be Python functions, which need the GIL; therefore no thread may wait for `state.lock` while it holds
// the GIL, and every entry point that can run operations begins with a `WithoutGil`.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace standin {

using Lock = std::unique_lock<std::mutex>;

struct Stream;

// One recording of an event. Waits keep the recording they were made for: an event may be recorded
// again, or destroyed, while somebody still waits for what it marked before.
struct Recording {
    Stream* stream = nullptr;
    bool done = false;
    double secs = 0;  // when it was done, by the host's clock
};

struct Operation {
    enum Kind { Run, Wait, Mark, Sleep };
    Kind kind;
    std::function<void()> run;              // Run
    std::shared_ptr<Recording> recording;   // Wait, Mark
    int rounds = 0;                         // Sleep: how often it is passed over
};

// What cudaGraph_t points to here: operations in the order they were captured.
struct Graph {
    std::vector<Operation> operations;
};

struct Stream {
    int device;
    int priority = 0;
    std::deque<Operation> queue;
    bool is_busy = false;     // a thread is running an operation of it, without the lock
    bool is_destroyed = false;
    double eagerness = 0;     // the chance that its next operation runs, each time there is one
    // Graph capture
    Graph* graph = nullptr;   // while capturing
    cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
    unsigned long capturing_thread = 0;
    bool is_invalidated = false;

    bool is_capturing() const { return graph != nullptr; }
};

struct Event {
    unsigned flags;
    int device;
    bool is_destroyed = false;
    std::shared_ptr<Recording> recording;  // none before the first
};

struct Allocation {
    size_t n_bytes;
    bool is_pinned_host;
    bool is_registered;  // memory of somebody else's, by cudaHostRegister
    int device;
};

enum class Mode {
    Random,  // every stream with an eagerness of its own, drawn by seed
    Lazy,    // nothing runs before somebody waits for it
    Eager,   // everything runs when it is asked for
    Free,    // nothing is moved and everything is done at once: for measuring the host
};

struct State {
    std::mutex lock;
    std::condition_variable changed;  // an operation was finished, or an event became done
    std::map<char*, Allocation> allocations;
    std::set<Stream*> streams;              // destroyed ones, too, while they have operations
    std::map<int, Stream*> default_streams;
    std::map<int, size_t> device_bytes;     // allocated
    std::map<int, long> uses;               // calls made while a device was the current one
    std::map<const char*, long> counts;     // by the address of a literal, which costs a call little
    std::set<std::string> unknown_kernels;
    std::mt19937 random;
    Mode mode = Mode::Random;
    cudaError_t sticky = cudaSuccess;       // what every call returns once the device is "broken"
};

extern State state;
extern thread_local int current_device;
extern thread_local cudaError_t last_error;

// Gives the GIL up, if this thread holds it, until the end of the block.
class WithoutGil {
  public:
    WithoutGil();
    ~WithoutGil();

  private:
    void* saved_ = nullptr;
};

int option(const char* name, int otherwise);
int n_devices();
size_t memory_bytes();  // of each device
double now();
[[noreturn]] void stop(const std::string& why);
cudaError_t fail(cudaError_t error);

// The rest is called with the lock held.

// A call into the runtime: counts it for the current device. An error where a device is "broken".
cudaError_t enter(const char* name);
// A call that no thread may make during a capture, unless the capture's mode lets it. A violation ends
// the capture, as in CUDA.
cudaError_t enter_unsafe(const char* name);

Stream* default_stream(int device);
Stream* find_stream(cudaStream_t handle);  // null for one that was destroyed
Event* find_event(cudaEvent_t handle);     // null for one that was destroyed
void draw_eagerness(Stream* stream);
void enqueue(Stream* stream, Operation operation);
void let_some_run(Lock& lock);
std::shared_ptr<Recording> mark(Stream* stream);
void wait_for(const std::shared_ptr<Recording>& recording, Lock& lock);
void drain(Stream* stream, Lock& lock);
void drain_device(int device, Lock& lock);

std::map<char*, Allocation>::iterator find_allocation(const void* address);
void must_lie_inside(const void* address, size_t n_bytes, const char* what);

}  // namespace standin

#define CUDA_API extern "C" __attribute__((visibility("default")))
// Ends a call with an error unless what is evaluated is a success.
#define MUST(call)                                        \
    do {                                                  \
        cudaError_t error_ = (call);                      \
        if (error_ != cudaSuccess) return fail(error_);   \
    } while (0)

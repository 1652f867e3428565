// In place of CUDA's runtime for csrc/cuda/tables.cpp. No task runs, but the model knows which tasks are over when the next one
// begins. A clock says how many tasks of each stream are over: the host has a clock, and so has each stream at its end and each
// event. Memory knows the tasks that read or wrote it; a task that overwrites the memory before they are over is a fault.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

enum cudaError_t { cudaSuccess };
enum { cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

namespace model {

constexpr int kNever = 1 << 30;  // a graph may be replayed for ever

using Clock = std::map<int, int>;  // stream: tasks that are over
struct Task {
  int stream, number;
};
struct Memory {
  std::vector<Task> tasks;
  Task written{-1, 0};
};

inline Clock host;
inline std::map<const void*, Memory> memories;
inline std::vector<std::string> faults;
inline int streams = 0;

inline bool is_over(const Task& task, const Clock& clock) {
  const auto known = clock.find(task.stream);
  return task.stream < 0 || (known != clock.end() && known->second >= task.number);
}
inline void join(Clock& clock, const Clock& other) {
  for (const auto& [stream, tasks] : other)
    if (clock[stream] < tasks) clock[stream] = tasks;
}
inline void expect_over(const void* data, const Clock& clock, const char* what) {
  for (const Task& task : memories[data].tasks)
    if (!is_over(task, clock))
      faults.push_back(std::string(what) + " before a task of stream " + std::to_string(task.stream) + " is over");
}

}  // namespace model

struct CUstream_st {
  int number = model::streams++;
  bool capturing = false;
  model::Clock clock;
};
struct CUevent_st {
  model::Clock clock;
};

namespace model {

// What the host knows to be over is over for all that it begins from now on.
inline const Clock& before_next(CUstream_st* stream) {
  join(stream->clock, host);
  return stream->clock;
}
inline Task next_task(CUstream_st* stream) {
  if (stream->capturing) return {stream->number, kNever};
  return {stream->number, ++stream->clock[stream->number]};
}

// A kernel on `stream` that reads what was uploaded to `data`.
inline void read(const void* data, CUstream_st* stream) {
  Memory& memory = memories[data];
  if (!is_over(memory.written, stream->capturing ? host : before_next(stream))) faults.push_back("read before the upload is over");
  memory.tasks.push_back(next_task(stream));
}

inline cudaError_t allocate(void** data, size_t bytes) {
  *data = std::malloc(bytes);
  memories[*data] = {};
  return cudaSuccess;
}
inline cudaError_t release(void* data) {
  expect_over(data, host, "freed");
  std::free(data);
  return cudaSuccess;
}

}  // namespace model

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

inline cudaError_t cudaMallocHost(void** data, size_t bytes) { return model::allocate(data, bytes); }
inline cudaError_t cudaMalloc(void** data, size_t bytes) { return model::allocate(data, bytes); }
inline cudaError_t cudaFreeHost(void* data) { return model::release(data); }
inline cudaError_t cudaFree(void* data) { return model::release(data); }

// The host has filled `from` just before.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t, cudaMemcpyKind, cudaStream_t stream) {
  model::expect_over(from, model::host, "host memory overwritten");
  model::expect_over(to, model::before_next(stream), "table overwritten");
  const model::Task task = model::next_task(stream);
  for (const void* data : {static_cast<const void*>(to), from}) model::memories[data] = {{task}, task};
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = new CUstream_st, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return model::join(model::host, stream->clock), cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (stream->capturing) model::faults.push_back("a captured stream waits for an event from outside");
  return model::join(stream->clock, event->clock), cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = new CUevent_st, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return event->clock = stream->clock, cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) { return model::join(model::host, event->clock), cudaSuccess; }

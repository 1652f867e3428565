// A step updates the same tensors as the step before, so their table stays on the device: the host compares 80 bytes for each
// tensor, nothing is copied, and nothing waits. Gradients move between a few addresses. Each arrangement of addresses gets a table,
// and the oldest of 16 tables is overwritten.
//
// While a CUDA graph is captured, a new table is uploaded at once on a separate stream, outside the graph. It is never overwritten,
// because the graph holds its address.
#include "cuda/tables.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <list>
#include <mutex>
#include <string>

namespace fastssl {

void check(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, "fastssl: ", what, ": ", cudaGetErrorString(status));
}

Dtype dtype_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::Double:
      return kFloat64;
    default:
      STD_TORCH_CHECK(false, "fastssl: expected a float tensor");
  }
  return kNothing;
}

DeviceOf::DeviceOf(const Tensor& tensor) : device(tensor.get_device()), guard(device), stream(nullptr) {
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
  stream = static_cast<cudaStream_t>(current);
}

Scalar scalar_of(double number, const std::optional<Tensor>& tensor) {
  if (!tensor) return {number, nullptr, false};
  return {0.0, tensor->data_ptr(), dtype_of(*tensor) == kFloat64};
}

std::vector<TensorRecord> new_records(const std::vector<Tensor>& first) {
  std::vector<TensorRecord> records(first.size());
  std::memset(records.data(), 0, records.size() * sizeof(TensorRecord));
  for (size_t t = 0; t < first.size(); t++) {
    records[t].count = first[t].numel();
    for (Dtype& dtype : records[t].dtype) dtype = kNothing;
  }
  return records;
}

void add_list(std::vector<TensorRecord>& records, int l, const std::vector<Tensor>& list) {
  for (size_t t = 0; t < list.size(); t++) {
    records[t].data[l] = list[t].data_ptr();
    records[t].dtype[l] = dtype_of(list[t]);
  }
}

struct Entry {
  int32_t device = 0;
  std::vector<TensorRecord> records;
  std::vector<ChunkRecord> chunks;
  char *host = nullptr, *on_device = nullptr;  // both hold the records, then the chunks
  size_t capacity = 0;
  cudaEvent_t uploaded = nullptr, used = nullptr;
  cudaStream_t uploaded_on = nullptr, used_on = nullptr;
  bool captured = false;
  int users = 0;  // calls between their constructor and destructor
};

namespace {

constexpr int kTables = 16;  // for each device, beside those that graphs hold

std::mutex lock;
std::list<Entry> entries;  // the one that was used last stands in front

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

// While this object lives, its thread may allocate and copy although a stream is being captured, as torch's allocator does.
struct RelaxedCapture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  RelaxedCapture() { check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode"); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

bool same(const std::vector<TensorRecord>& a, const std::vector<TensorRecord>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(TensorRecord)) == 0;
}

// A new entry, or the device's oldest free one where there are enough; whatever used that entry is over when this returns.
Entry& vacant(int32_t device) {
  int count = 0;
  Entry* oldest = nullptr;
  for (Entry& entry : entries)
    if (entry.device == device && !entry.captured) {
      count++;
      if (entry.users == 0) oldest = &entry;
    }
  if (count >= kTables && oldest) {
    check(cudaEventSynchronize(oldest->used), "cudaEventSynchronize");
    return *oldest;
  }
  Entry& entry = entries.emplace_back();
  entry.device = device;
  check(cudaEventCreateWithFlags(&entry.uploaded, cudaEventDisableTiming), "cudaEventCreate");
  check(cudaEventCreateWithFlags(&entry.used, cudaEventDisableTiming), "cudaEventCreate");
  return entry;
}

void reserve(Entry& entry, size_t bytes) {
  if (entry.capacity >= bytes) return;
  const size_t wanted = bytes + bytes / 2;
  entry.capacity = 0;
  check(cudaFreeHost(entry.host), "cudaFreeHost");
  check(cudaFree(entry.on_device), "cudaFree");
  entry.host = entry.on_device = nullptr;
  check(cudaMallocHost(reinterpret_cast<void**>(&entry.host), wanted), "cudaMallocHost");
  check(cudaMalloc(reinterpret_cast<void**>(&entry.on_device), wanted), "cudaMalloc");
  entry.capacity = wanted;
}

// Writes the table of `records` into `entry`, which nothing uses.
void fill(Entry& entry, const std::vector<TensorRecord>& records, cudaStream_t stream, bool capturing) {
  entry.records.clear();  // if anything below fails, nothing finds this entry
  entry.chunks = chunks_of(records);
  const size_t record_bytes = records.size() * sizeof(TensorRecord), chunk_bytes = entry.chunks.size() * sizeof(ChunkRecord);
  reserve(entry, record_bytes + chunk_bytes);
  std::memcpy(entry.host, records.data(), record_bytes);
  std::memcpy(entry.host + record_bytes, entry.chunks.data(), chunk_bytes);
  cudaStream_t separate = nullptr;
  if (capturing) check(cudaStreamCreateWithFlags(&separate, cudaStreamNonBlocking), "cudaStreamCreate");
  const cudaStream_t through = capturing ? separate : stream;
  check(cudaMemcpyAsync(entry.on_device, entry.host, record_bytes + chunk_bytes, cudaMemcpyHostToDevice, through),
        "cudaMemcpyAsync");
  if (capturing) {
    check(cudaStreamSynchronize(separate), "cudaStreamSynchronize");
    check(cudaStreamDestroy(separate), "cudaStreamDestroy");
  } else {
    check(cudaEventRecord(entry.uploaded, stream), "cudaEventRecord");
  }
  entry.uploaded_on = stream;
  entry.captured = capturing;
  entry.records = records;
}

}  // namespace

Table::Table(const std::vector<TensorRecord>& records, const DeviceOf& on) : entry_(nullptr), stream_(on.stream) {
  const std::lock_guard<std::mutex> guard(lock);
  const bool capturing = is_capturing(on.stream);
  auto found = entries.begin();
  // A capture uses only tables whose upload is known to be over, which are those that a capture made.
  while (found != entries.end() &&
         !(found->device == on.device && (!capturing || found->captured) && same(found->records, records)))
    ++found;
  if (found == entries.end()) {
    const RelaxedCapture relaxed;
    Entry& entry = vacant(on.device);
    fill(entry, records, on.stream, capturing);
    for (found = entries.begin(); &*found != &entry;) ++found;
  } else if (!found->captured && found->uploaded_on != on.stream) {
    check(cudaStreamWaitEvent(on.stream, found->uploaded, 0), "cudaStreamWaitEvent");
  }
  entries.splice(entries.begin(), entries, found);
  entry_ = &*found;
  entry_->users++;
}

Table::~Table() {
  const std::lock_guard<std::mutex> guard(lock);
  entry_->users--;
  if (entry_->captured) return;
  // The event knows of one stream only. So this stream waits for the one that used the table before, and its end is the end of all.
  if (entry_->used_on != stream_) cudaStreamWaitEvent(stream_, entry_->used, 0);
  cudaEventRecord(entry_->used, stream_);
  entry_->used_on = stream_;
}

Launch Table::launch() const {
  return {{reinterpret_cast<const TensorRecord*>(entry_->on_device),
           reinterpret_cast<const ChunkRecord*>(entry_->on_device + entry_->records.size() * sizeof(TensorRecord))},
          unsigned(entry_->chunks.size()),
          stream_};
}

}  // namespace fastssl

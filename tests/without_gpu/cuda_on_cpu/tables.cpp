// csrc/cuda/tables.cpp without a change, on a runtime that does no work (runtime/cuda_runtime.h), as a library for ctypes.
#include "cuda/tables.cpp"

namespace {

CUstream_st of_user[3];
CUstream_st* current = of_user;

}  // namespace

// What only a build of torch with CUDA has.
extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) { return *stream = current, AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) { return *guard = nullptr, AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

// A kernel on a stream of the user reads the table of a list of as many tensors, which have other addresses than any other list.
void use(int stream, int list, int tensors, bool capturing) {
  using namespace fastssl;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(0, nullptr, nullptr, aoti_torch_dtype_float32(), 0, 0, &handle));
  const Tensor tensor(handle);
  std::vector<TensorRecord> records = new_records(std::vector<Tensor>(size_t(tensors), tensor));
  for (int t = 0; t < tensors; t++) records[t].data[0] = reinterpret_cast<void*>(uintptr_t(4096 * list + 16 * t + 16));
  current = &of_user[stream];
  current->capturing = capturing;
  {
    const Table table(records, DeviceOf(tensor));
    const Launch launch = table.launch();
    const auto* first = launch.table.tensors;
    if (launch.stream != current || launch.chunks != unsigned(tensors)) model::faults.push_back("another stream or list");
    model::read(first, current);
  }
  current->capturing = false;
}

int tables() { return int(fastssl::entries.size()); }
const char* first_fault() { return model::faults.empty() ? "" : model::faults.front().c_str(); }
}

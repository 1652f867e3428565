#pragma once
#include <pybind11/pybind11.h>

namespace fastssl {

// queue_push_ with all its checks, for arguments that need no conversion: plain tensors of one dtype on one device, dense where
// they are written, and apart in memory. False where it did nothing, because something is wrong or needs more; ops/queue.py goes on
// then.
bool push_now(const pybind11::handle& queue, const pybind11::handle& ptr, const pybind11::handle& keys,
              const pybind11::handle& label_queue, const pybind11::handle& labels, const pybind11::handle& layout,
              const pybind11::handle& overflow);

}  // namespace fastssl

#pragma once

namespace fastssl {

// Registers ema_update_, adamw_ and lars_ for the CPU, once in a process, with the kernels of the table that attach took.
void register_list_ops();

}  // namespace fastssl

// Refusals of bad arguments, whose message is made of the parts that follow the condition, and failures of torch's C functions.
// Python gets a RuntimeError, or a ValueError from FASTSSL_CHECK_VALUE.
#pragma once
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <ostream>
#include <sstream>
#include <stdexcept>

// What torch said of the last failure in this thread, where it is torch 2.13 or later.
extern "C" const char* torch_exception_get_what_without_backtrace() __attribute__((weak));

namespace fastssl {

using IntArrayRef = torch::headeronly::IntHeaderOnlyArrayRef;

// As torch writes a shape: [2, 3].
inline std::ostream& operator<<(std::ostream& out, IntArrayRef numbers) {
  out << '[';
  for (size_t i = 0; i < numbers.size(); i++) out << (i ? ", " : "") << numbers[i];
  return out << ']';
}

template <class Error, class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

[[noreturn]] inline void torch_failed(const char* call) {
  const auto said = torch_exception_get_what_without_backtrace;
  if (const char* words = said ? said() : nullptr; words && *words) refuse<std::runtime_error>(words);
  refuse<std::runtime_error>("torch failed in ", call);
}

}  // namespace fastssl

#define FASTSSL_CHECK(condition, ...) ((condition) ? void() : ::fastssl::refuse<std::runtime_error>(__VA_ARGS__))
#define FASTSSL_CHECK_VALUE(condition, ...) ((condition) ? void() : ::fastssl::refuse<std::invalid_argument>(__VA_ARGS__))
#define FASTSSL_TORCH(call) ((call) == 0 ? void() : ::fastssl::torch_failed(#call))

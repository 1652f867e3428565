// The table of interface.h, and what Python asks through ctypes: numbers, and texts that last.
#include "cpu/interface.h"

#include <torch/headeronly/version.h>

#include <string>

#include "cpu/cross_step.h"
#include "cpu/isa.h"
#include "cpu/new_tensor.h"
#include "cpu/pair_step.h"
#include "cpu/peak.h"
#include "cpu/products.h"
#include "cpu/similarity_triangle.h"
#include "cpu/sup_con_step.h"
#include "cpu/units.h"
#include "cpu/unlucky.h"

namespace fastssl {
namespace {

Tensor borrowed(AtenTensorHandle handle) {
  AtenTensorHandle own;
  FASTSSL_TORCH(aoti_torch_new_tensor_handle(handle, &own));
  return Tensor(own);
}

OptionalTensor given(AtenTensorHandle handle) {
  const Tensor tensor = borrowed(handle);
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

void return_all(std::initializer_list<const Tensor*> tensors, AtenTensorHandle* made) {
  for (const Tensor* tensor : tensors) *made++ = tensor->new_handle();
}

void nt_xent_forward(const AtenTensorHandle views[2], const Step& step, AtenTensorHandle made[5]) {
  const auto f = pair_step::forward(borrowed(views[0]), borrowed(views[1]), step.scale, step.mean, step.keep);
  return_all({&f.loss, &f.z, &f.numbers, &f.peak, &f.kept}, made);
}
void nt_xent_backward(AtenTensorHandle dloss, const AtenTensorHandle left[4], const Step& step, AtenTensorHandle gradients[2]) {
  const pair_step::Forward f{{}, borrowed(left[0]), borrowed(left[1]), borrowed(left[2]), borrowed(left[3])};
  const auto [da, db] = pair_step::backward(borrowed(dloss), f, step.scale, step.mean, step.dtype);
  return_all({&da, &db}, gradients);
}

void sup_con_forward(const AtenTensorHandle inputs[2], const Step& step, AtenTensorHandle made[6]) {
  const auto f = sup_con_step::forward(borrowed(inputs[0]), borrowed(inputs[1]), step.scale, step.normalize, step.mean, step.keep);
  return_all({&f.loss, &f.z, &f.numbers, &f.peak, &f.classes, &f.kept}, made);
}
bool each_sample_once(AtenTensorHandle classes) { return sup_con_step::each_sample_once(borrowed(classes)); }
void sup_con_backward(AtenTensorHandle dloss, const AtenTensorHandle left[5], const Step& step, AtenTensorHandle gradients[1]) {
  const sup_con_step::Forward f{{}, borrowed(left[0]), borrowed(left[1]), borrowed(left[2]), borrowed(left[3]), borrowed(left[4])};
  const Tensor d = sup_con_step::backward(borrowed(dloss), f, step.scale, step.normalize, step.mean, step.dtype);
  return_all({&d}, gradients);
}

cross_step::How how(const Step& step) { return {step.scale, step.mean, step.normalize, step.both}; }
void cross_forward(const AtenTensorHandle inputs[3], const Step& step, AtenTensorHandle made[7]) {
  const auto f = cross_step::forward(borrowed(inputs[0]), borrowed(inputs[1]), given(inputs[2]), how(step), step.keep);
  return_all({&f.loss, &f.x, &f.y, &f.numbers, &f.state, &f.peak, &f.kept}, made);
}
void cross_backward(AtenTensorHandle dloss, const AtenTensorHandle left[7], const Step& step, AtenTensorHandle gradients[3]) {
  const cross_step::Forward f{
      {}, borrowed(left[0]), borrowed(left[1]), borrowed(left[2]), borrowed(left[3]), borrowed(left[4]), borrowed(left[5])};
  const auto made = cross_step::backward(borrowed(dloss), f, given(left[6]), how(step),
                                         {step.wanted[0], step.wanted[1], step.wanted[2]}, step.dtype);
  return_all({&made[0], &made[1], &made[2]}, gradients);
}

constexpr Interface kInterface{
    Interface::kVersion,
    nt_xent_forward,
    nt_xent_backward,
    sup_con_forward,
    each_sample_once,
    sup_con_backward,
    cross_forward,
    cross_backward,
    ema_update,
    adamw,
    lars,
    pages::take,
    pages::keep,
    set_make_large,
};

std::string joined(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ",") + name;
  return all;
}

// The message of the last refusal in this thread.
thread_local std::string refusal;

template <class F>
bool allowed(const F& call) {
  try {
    call();
    return true;
  } catch (const std::invalid_argument& error) {
    refusal = error.what();
    return false;
  }
}

}  // namespace
}  // namespace fastssl

#define FASTSSL_EXPORT extern "C" __attribute__((visibility("default")))
using namespace fastssl;

FASTSSL_EXPORT const Interface* fastssl_interface() { return &kInterface; }

FASTSSL_EXPORT const char* fastssl_compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}
FASTSSL_EXPORT const char* fastssl_torch() { return TORCH_VERSION; }
FASTSSL_EXPORT int fastssl_cxx_standard() { return __cplusplus / 100 % 100; }

// Lists of names are separated by commas. Functions that may refuse return whether they did what was asked.
FASTSSL_EXPORT const char* fastssl_isas() {
  static const std::string names = joined(isa::available());
  return names.c_str();
}
FASTSSL_EXPORT const char* fastssl_isa() { return isa::name(isa::current()); }
FASTSSL_EXPORT bool fastssl_set_isa(const char* name) {
  return allowed([&] { isa::use(name); });
}
FASTSSL_EXPORT const char* fastssl_refusal() { return refusal.c_str(); }

FASTSSL_EXPORT const char* fastssl_units() {
  static const std::string names = joined(units::available());
  return names.c_str();
}
// Pairs of a dtype and a unit, with a space between them.
FASTSSL_EXPORT const char* fastssl_peak_units() {
  static const std::string names = [] {
    std::vector<std::string> pairs;
    for (const auto& [dtype, unit] : peak_units()) pairs.push_back(dtype + " " + unit);
    return joined(pairs);
  }();
  return names.c_str();
}
FASTSSL_EXPORT bool fastssl_peak_flops(const char* dtype, const char* unit, double* registers, double* tile) {
  return allowed([&] {
    const Peak peak = measure_peak(dtype, unit);
    *registers = peak.registers, *tile = peak.tile;
  });
}

FASTSSL_EXPORT bool fastssl_uses_brgemm() { return uses_brgemm(); }
FASTSSL_EXPORT void fastssl_use_brgemm(bool on) { use_brgemm(on); }
FASTSSL_EXPORT int64_t fastssl_most_kept_bytes() { return similarity::most_kept().first; }
FASTSSL_EXPORT int64_t fastssl_most_kept_rows() { return similarity::most_kept().second; }
FASTSSL_EXPORT void fastssl_keep_at_most(int64_t bytes) { similarity::keep_at_most(bytes); }
FASTSSL_EXPORT void fastssl_set_unlucky_products(bool on) { unlucky_products = on; }

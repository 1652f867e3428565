// What fastssl._C calls of this library without the dispatcher of torch: one table of functions. A tensor is a handle of torch's C
// interface, borrowed where it is given and owned where it is returned; a handle may be that of an undefined tensor.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>

#include "cpu/list_calls.h"
#include "cpu/pages.h"

namespace fastssl {

// How a loss is computed, and what its backward is to give.
struct Step {
  double scale;
  bool mean, normalize, both;  // both directions
  bool keep;                   // what a backward may use, in a forward
  bool wanted[3];              // the gradients of these inputs, in a backward
  c10::ScalarType dtype;       // of the gradients of rows, in a backward
};

// The forward of a step makes the loss and what it leaves behind, in the order of the struct Forward of pair_step.h, sup_con_step.h
// or cross_step.h. The backward takes the upstream gradient, and of these what follows the loss.
struct Interface {
  static constexpr int64_t kVersion = 2;
  int64_t version;

  void (*nt_xent_forward)(const AtenTensorHandle views[2], const Step& step, AtenTensorHandle made[5]);
  void (*nt_xent_backward)(AtenTensorHandle dloss, const AtenTensorHandle left[4], const Step& step, AtenTensorHandle gradients[2]);

  // The inputs are the features and the labels.
  void (*sup_con_forward)(const AtenTensorHandle inputs[2], const Step& step, AtenTensorHandle made[6]);
  bool (*each_sample_once)(AtenTensorHandle classes);
  void (*sup_con_backward)(AtenTensorHandle dloss, const AtenTensorHandle left[5], const Step& step, AtenTensorHandle gradients[1]);

  // The inputs are a, b and the factor of the scale, which may be undefined; it follows what the forward left.
  void (*cross_forward)(const AtenTensorHandle inputs[3], const Step& step, AtenTensorHandle made[7]);
  void (*cross_backward)(AtenTensorHandle dloss, const AtenTensorHandle left[7], const Step& step, AtenTensorHandle gradients[3]);

  void (*ema_update)(const EmaCall& call);
  void (*adamw)(const AdamCall& call);
  void (*lars)(const LarsCall& call);

  pages::Block (*take_pages)(size_t bytes);
  void (*keep_pages)(pages::Block block);
  // From then on large tensors are made by this function: new_tensor.h.
  void (*set_make_large)(AtenTensorHandle (*make)(const int64_t* sizes, size_t dims, c10::ScalarType dtype));
};

}  // namespace fastssl

// In the kernels' library alone: fastssl._C is given the address.
extern "C" __attribute__((visibility("default"))) const fastssl::Interface* fastssl_interface();

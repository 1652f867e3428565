// fastssl._C: what the host does beside the ops of fastssl/_cpu.so, where this takes Python's or torch's full C++ interface. It
// fits one Python and one minor version of torch; beside others the same is done in Python.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "python/kernels.h"
#include "python/launch_key.h"
#include "python/lists_agree.h"
#include "python/losses.h"
#include "python/new_tensors.h"
#include "python/permutations.h"
#include "python/push_now.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "What fastssl does on the host beside its ops, in C++.";
  m.attr("torch") = TORCH_VERSION;
  m.def("attach", &fastssl::attach, py::arg("address"),
        "Takes the table of the kernels' library and registers the ops over lists of tensors with it.");
  m.def("lists_agree", &fastssl::lists_agree, py::arg("written"), py::arg("read"),
        "Whether kernels can take these lists of tensors without changes; ops/_lists.py finds out why they cannot.");
  m.def("launch_key", &fastssl::launch_key, py::arg("arguments"),
        "What decides which compiled kernel fits, and the arguments with addresses for tensors; kernels/host/launch.py.");
  m.def("new_tensors", &fastssl::new_tensors, py::arg("like"), py::arg("dtype"),
        "Empty tensors of the shapes that follow, on the device of another; kernels/host/tensors.py.");
  m.def("rows_of", &fastssl::rows_of, py::arg("matrix"), "The rows of a matrix, as views.");
  m.def("push_now", &fastssl::push_now, py::arg("queue"), py::arg("ptr"), py::arg("keys"), py::arg("label_queue"),
        py::arg("labels"), py::arg("layout"), py::arg("overflow"),
        "Pushes where nothing needs a closer look; ops/queue.py looks closer.");
  m.def("are_permutations", &fastssl::are_permutations, py::arg("ids"), "Whether each row is a permutation of its places.");
  m.def("nt_xent", &fastssl::nt_xent, py::arg("op"), py::arg("z0"), py::arg("z1"), py::arg("temperature"), py::arg("mean"),
        "NT-Xent of unit rows on the CPU as one node, or None where loss/nt_xent.py must look at the arguments.");
  m.def("sup_con", &fastssl::sup_con, py::arg("op"), py::arg("features"), py::arg("labels"), py::arg("temperature"),
        py::arg("normalize"), py::arg("mean"),
        "SupCon on the CPU as one node, or None where loss/sup_con.py must look at the arguments.");
  m.def("info_nce", &fastssl::info_nce, py::arg("op"), py::arg("query"), py::arg("key"), py::arg("temperature"),
        py::arg("normalize"), py::arg("symmetric"), py::arg("mean"),
        "InfoNCE in a batch on the CPU as one node, or None where loss/info_nce.py must look at the arguments.");
  m.def("clip", &fastssl::clip, py::arg("op"), py::arg("image"), py::arg("text"), py::arg("logit_scale"), py::arg("normalize"),
        "CLIP's loss on the CPU as one node, or None where loss/clip.py must look at the arguments.");
  m.def("bump_versions", &fastssl::bump_versions, py::arg("tensors"), "Tells autograd that these tensors changed in place.");
}

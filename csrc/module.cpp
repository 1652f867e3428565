// fastssl._C: importing it registers the C++ kernels. The module's functions tell how it was built and which instruction set is in
// use, and do what the host does beside the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "cpu/isa.h"
#include "cpu/products.h"
#include "cpu/peak.h"
#include "cpu/similarity_triangle.h"
#include "cpu/units.h"
#include "cpu/unlucky.h"
#include "python/launch_key.h"
#include "python/lists_agree.h"
#include "python/losses.h"
#include "python/new_tensors.h"
#include "python/permutations.h"
#include "python/push_now.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels of fastssl; loading this module registers them with torch.";
  m.def(
      "build_info",
      [] {
        py::dict info;
#if defined(__clang__)
        info["compiler"] = "clang " __clang_version__;
#else
        info["compiler"] = "gcc " __VERSION__;
#endif
        info["torch"] = TORCH_VERSION;
        info["cxx_standard"] = __cplusplus / 100 % 100;
        return info;
      },
      "Compiler, torch version and C++ standard this module was built with.");
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
  m.def("isas", &fastssl::isa::available, "Instruction sets that this machine can run, narrowest first.");
  m.def("isa", [] { return fastssl::isa::name(fastssl::isa::current()); }, "Instruction set in use.");
  m.def("set_isa", &fastssl::isa::use, py::arg("name"), "Use another instruction set; ValueError if this machine lacks it.");
  m.def("units", &fastssl::units::available, "16-bit multiply-add units that this CPU has, whether or not a kernel uses them.");
  m.def("peak_units", &fastssl::peak_units, "(dtype, unit) of each peak that this machine can measure.");
  m.def(
      "peak_flops",
      [](const std::string& dtype, const std::string& unit) {
        const fastssl::Peak peak = fastssl::measure_peak(dtype, unit);
        return std::pair(peak.registers, peak.tile);
      },
      py::arg("dtype"), py::arg("unit"), py::call_guard<py::gil_scoped_release>(),
      "FLOP/s of all threads in registers, and in a tile that stays in L2 or 0; measured now, in 20 ms on a quiet machine.");
  m.def("uses_brgemm", &fastssl::uses_brgemm, "Whether products of bfloat16 go through oneDNN, as they do on a CPU with AMX.");
  m.def("use_brgemm", &fastssl::use_brgemm, py::arg("on"), "For tests: products of bfloat16 through oneDNN, or by our own code.");
  m.def("most_kept", &fastssl::similarity::most_kept, "Bytes of tiles that NT-Xent and SupCon keep at most, and rows in float32.");
  m.def("keep_at_most", &fastssl::similarity::keep_at_most, py::arg("bytes"), "For tests: changes the former.");
  m.def(
      "set_unlucky_products", [](bool on) { fastssl::unlucky_products = on; }, py::arg("on"),
      "For tests: tiles of logits come with last bits that depend on the tile, the order of the operands and the pass.");
}

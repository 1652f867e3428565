#pragma once
#include <pybind11/pybind11.h>

#include <string>

namespace fastssl {

// Losses on the CPU as one node of the autograd graph. None where the arguments need the eyes of Python.
pybind11::object nt_xent(const std::string& op, const pybind11::handle& z0, const pybind11::handle& z1,
                         const pybind11::handle& temperature, bool mean);
pybind11::object sup_con(const std::string& op, const pybind11::handle& features, const pybind11::handle& labels,
                         const pybind11::handle& temperature, bool normalize, bool mean);

pybind11::object info_nce(const std::string& op, const pybind11::handle& query, const pybind11::handle& key,
                          const pybind11::handle& temperature, bool normalize, bool symmetric, bool mean);

pybind11::object clip(const std::string& op, const pybind11::handle& image, const pybind11::handle& text,
                      const pybind11::handle& logit_scale, bool normalize);

}  // namespace fastssl

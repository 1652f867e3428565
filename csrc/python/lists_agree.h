#pragma once
#include <pybind11/pybind11.h>

namespace fastssl {

// True where a kernel can take these Python lists of tensors without further checks: every list has as many plain tensors as
// written[0]; the tensors of a position agree in shape, strides and device; all are dense floats (float64 with float64 only); and
// no memory is written twice, or written at one position and read at another. False may also mean "not sure".
bool lists_agree(const pybind11::list& written, const pybind11::list& read);

// Tells autograd that these tensors changed in place; none was made in inference mode, which leaves tensors without a version.
void bump_versions(const pybind11::list& tensors);

}  // namespace fastssl

// The Python faces of this floor, one function an area; csrc/bindings.cpp calls them.
#pragma once

#include <pybind11/pybind11.h>

namespace gct {

// CodecParams, encode, decode, inspect, and the choice among the codec's implementations.
void register_codec(pybind11::module_& m);

// Encoding and decoding on GPUs.
void register_device(pybind11::module_& m);

// Engine: the compressed collectives of one process group.
void register_engine(pybind11::module_& m);

}  // namespace gct

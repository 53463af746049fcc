// Describes the build: the strings are set by setup.py.
#include <pybind11/pybind11.h>

#include "cpu/instruction_set.h"

namespace py = pybind11;

PYBIND11_MODULE(_build_info, m) {
    m.doc() = "What the kernels' libraries were built with.";
    m.def("build_info", [] {
        py::dict info;
        info["libraries"] = MASKRCNN_LIBRARIES;
        info["cpu"] = MASKRCNN_CPU_ARCHS;
        info["cpu_chosen"] = maskrcnn::kInstructionSetNames[maskrcnn::instruction_set()];
        info["cuda"] = MASKRCNN_CUDA_ARCHS;
        info["compiler"] = MASKRCNN_COMPILER;
        info["torch_headers"] = MASKRCNN_TORCH;
        return info;
    });
}

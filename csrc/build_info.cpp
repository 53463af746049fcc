// Describes the build: the strings are set by setup.py.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_build_info, m) {
    m.doc() = "What the kernels' libraries were built with.";
    m.def("build_info", [] {
        py::dict info;
        info["libraries"] = MASKRCNN_LIBRARIES;
        info["cpu"] = MASKRCNN_CPU_ARCHS;
        info["cuda"] = MASKRCNN_CUDA_ARCHS;
        info["compiler"] = MASKRCNN_COMPILER;
        info["torch_headers"] = MASKRCNN_TORCH;
        return info;
    });
}

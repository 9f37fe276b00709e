// bertnli._text: where the text pipeline meets Python.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_text, m) { m.attr("torch_version") = BERTNLI_TORCH_VERSION; }

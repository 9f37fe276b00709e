// bertnli._ops: where the operators meet torch.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(bertnli, m) {}

// Importing the module loads the library, which registers the operators above; the module itself is empty.
PyMODINIT_FUNC PyInit__ops() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_ops", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

// The Python interface of tables and of Arrow's columns.
#pragma once

#include <pybind11/pybind11.h>

namespace bertnli {

void bind_tables(pybind11::module_& m);

}  // namespace bertnli

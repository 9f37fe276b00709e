// The words of a binary parse.
#pragma once

#include <string>
#include <string_view>

namespace bertnli {

// D2L's clean-up of a binary parse: "(" and ")" go, two or more white space characters become one space, both ends are
// stripped. Appends to out.
void extract_text(std::string_view parse, std::string& out);

}  // namespace bertnli

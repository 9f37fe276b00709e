// The words of a binary parse.
#pragma once

#include <string>
#include <string_view>

namespace bertnli {

// Appends the words of a binary parse as D2L extracts them: without "(" and ")", two or more white space characters as
// one space, both ends stripped.
void extract_text(std::string_view parse, std::string& out);

}  // namespace bertnli

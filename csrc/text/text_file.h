// A text file, read a window of whole lines at a time. It is not mapped: a process that reads a mapped file ends by
// SIGBUS when another one shortens the file.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include "../system.h"
#include "buffers.h"

namespace bertnli {

// An error in the content of a file; the message begins with its path.
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The system cannot open or read a file.
struct FileError : std::system_error {
  FileError(int code, const std::string& path) : std::system_error(code, std::generic_category(), path), path(path) {}
  const std::string path;
};

// Where the last line that is whole ends; 0 if there is none. The last \r may be the first half of \r\n.
size_t last_line_end(const char* text, size_t size);

// Several threads may read. All functions throw FileError.
class TextFile {
 public:
  // Opens a regular file; reads anything else, such as a pipe, to its end.
  explicit TextFile(const std::string& path);
  ~TextFile();
  TextFile(const TextFile&) = delete;
  TextFile& operator=(const TextFile&) = delete;

  const std::string& path() const { return path_; }
  size_t size() const { return size_; }  // bytes, when it was opened
  // Copies the bytes [at, at + n) of the file. Throws FormatError where it is shorter by now.
  void read(size_t at, char* to, size_t n) const;
  // Throws FormatError if the file was written to since it was opened.
  void check_unchanged() const;

  // Lines end by \n, \r\n or \r, as Python's universal newlines do.
  size_t behind_bom() const;                 // 0, or 3 behind a byte order mark
  size_t behind_newline(size_t at) const;    // behind the first \n from `at` on; size() if there is none
  size_t line_number(size_t at) const;       // of the line that the byte is in, from 1
  bool has_only_line_ends(size_t at) const;  // from `at` on
  // The line that begins there; `at` becomes the begin of the next.
  std::string line(size_t& at) const;

 private:
  [[noreturn]] void changed() const;
  // Calls each(block) with the bytes from `at` on until it returns false or the file ends.
  template <class Each>
  void blocks(size_t at, const Each& each) const;

  const std::string path_;
  int file_ = -1;  // a regular one
  FileState opened_;
  size_t size_ = 0;
  std::string content_;  // of anything else
};

// The bytes [begin, end) of a file, which begin and end between lines, in windows of whole lines.
class Windows {
 public:
  static constexpr size_t kBytes = size_t{1} << 18;  // stays in a core's cache

  Windows(const TextFile& file, size_t begin, size_t end, size_t bytes = kBytes)
      : file_(file), next_(begin), end_(end), window_(bytes) {}
  ~Windows();
  Windows(const Windows&) = delete;
  Windows& operator=(const Windows&) = delete;

  // The next window, valid until the next call. It is longer than usual where a line is. False behind the last one.
  bool next(std::string_view& lines);
  // Where the window begins in the file.
  size_t offset() const { return next_ - filled_; }

 private:
  const TextFile& file_;
  size_t next_;  // of the file, to be read next
  const size_t end_, window_;
  Buffer* buffer_ = nullptr;
  size_t filled_ = 0, used_ = 0;  // bytes of the buffer; of these the bytes of the current window
};

}  // namespace bertnli

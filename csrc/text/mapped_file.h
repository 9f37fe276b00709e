// A file's bytes in memory.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace bertnli {

// Mapped where it is a regular file, read otherwise (pipes). Throws std::system_error.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view view() const {
    return mapped_ != nullptr ? std::string_view(static_cast<const char*>(mapped_), size_) : std::string_view(copy_);
  }

 private:
  void* mapped_ = nullptr;
  size_t size_ = 0;
  std::string copy_;
};

}  // namespace bertnli

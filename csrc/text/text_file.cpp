#include "text_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace bertnli {

[[noreturn]] static void fail(const std::string& path) { throw FileError(errno, path); }

TextFile::TextFile(const std::string& path) : path_(path) {
  const int file = open_to_read(path.c_str());
  if (file < 0) fail(path);
  struct Close {
    int file;
    ~Close() {
      if (file >= 0) close_file(file);
    }
  } guard{file};
  if (!get_state(file, opened_)) fail(path);
  if (opened_.is_regular && opened_.size > 0) {
    size_ = static_cast<size_t>(opened_.size);
    will_read_in_order(file);
    file_ = std::exchange(guard.file, -1);
    return;
  }
  char block[1 << 16];
  for (;;) {
    const int64_t n = read_next(file, block, sizeof block);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path);
    if (n == 0) break;
    content_.append(block, static_cast<size_t>(n));
  }
  size_ = content_.size();
}

TextFile::~TextFile() {
  if (file_ >= 0) close_file(file_);
}

void TextFile::read(size_t at, char* to, size_t n) const {
  if (file_ < 0) {
    std::memcpy(to, content_.data() + at, n);
    return;
  }
  while (n > 0) {
    const int64_t got = read_at(file_, to, n, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_);
    if (got == 0) changed();
    at += static_cast<size_t>(got);
    to += got;
    n -= static_cast<size_t>(got);
  }
}

void TextFile::check_unchanged() const {
  if (file_ < 0) return;
  FileState now;
  if (!get_state(file_, now)) fail(path_);
  if (now != opened_) changed();
}

void TextFile::changed() const {
  throw FormatError(path_ + ": the file changed while it was read; read it again once it is complete");
}

template <class Each>
void TextFile::blocks(size_t at, const Each& each) const {
  char block[1 << 13];
  for (size_t n; at < size_; at += n) {
    n = std::min(sizeof block, size_ - at);
    read(at, block, n);
    if (!each(std::string_view(block, n))) return;
  }
}

size_t TextFile::behind_bom() const {
  std::string start(std::min<size_t>(size_, 3), '\0');
  read(0, start.data(), start.size());
  return start == "\xEF\xBB\xBF" ? 3 : 0;
}

size_t TextFile::behind_newline(size_t at) const {
  bool found = false;
  blocks(at, [&](std::string_view block) {
    const size_t newline = block.find('\n');
    found = newline != block.npos;
    at += found ? newline + 1 : block.size();
    return !found;
  });
  return at;
}

size_t TextFile::line_number(size_t at) const {
  size_t lines = 1;
  char last = '\0';
  blocks(0, [&](std::string_view block) {
    for (const char c : block.substr(0, at)) {
      lines += c == '\r' || (c == '\n' && last != '\r');
      last = c;
    }
    at -= std::min(at, block.size());
    return at != 0;
  });
  return lines;
}

bool TextFile::has_only_line_ends(size_t at) const {
  bool only = true;
  blocks(at, [&](std::string_view block) { return only = block.find_first_not_of("\r\n") == block.npos; });
  return only;
}

std::string TextFile::line(size_t& at) const {
  std::string text;
  size_t stop = text.npos;
  blocks(at, [&](std::string_view block) {
    const size_t from = text.size() - std::min<size_t>(text.size(), 1);
    text += block;
    stop = text.find_first_of("\r\n", from);
    return stop == text.npos || (text[stop] == '\r' && stop + 1 == text.size());  // perhaps the first half of \r\n
  });
  if (stop == text.npos) {
    at += text.size();
  } else {
    at += stop + (text.compare(stop, 2, "\r\n") == 0 ? 2 : 1);
    text.resize(stop);
  }
  return text;
}

Windows::~Windows() {
  if (buffer_ != nullptr) give_buffer(buffer_);
}

size_t last_line_end(const char* text, size_t size) {
  const std::string_view all(text, size);
  if (const size_t newline = all.rfind('\n'); newline != all.npos) return newline + 1;
  const size_t cr = all.substr(0, size - std::min<size_t>(size, 1)).rfind('\r');
  return cr == all.npos ? 0 : cr + 1;
}

bool Windows::next(std::string_view& lines) {
  if (buffer_ == nullptr) buffer_ = take_buffer(std::max<size_t>(std::min(window_, end_ - next_), 1));
  auto* text = static_cast<char*>(buffer_->data);
  filled_ -= used_;
  std::memmove(text, text + used_, filled_);
  used_ = 0;
  while (used_ == 0 && next_ != end_) {
    const size_t room = std::max(window_, 2 * filled_);  // without a line end yet, twice as much
    if (room > buffer_->bytes) {
      Buffer* larger = take_buffer(room);
      std::memcpy(larger->data, text, filled_);
      give_buffer(std::exchange(buffer_, larger));
      text = static_cast<char*>(buffer_->data);
    }
    const size_t from = filled_ - std::min<size_t>(filled_, 1), more = std::min(room - filled_, end_ - next_);
    file_.read(next_, text + filled_, more);
    filled_ += more;
    next_ += more;
    used_ = last_line_end(text + from, filled_ - from);
    if (used_ != 0) used_ += from;
  }
  if (next_ == end_) used_ = filled_;
  lines = {text, used_};
  return used_ != 0;
}

}  // namespace bertnli

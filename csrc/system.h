// What systems do differently with files, memory and processes: the one place with calls that only some of them have.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#if defined(_WIN32)
#include <io.h>
#include <windows.h>

#include <string>
#else
#include <unistd.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#endif

namespace bertnli {

// ---- files ----

// What tells whether a file was written to.
struct FileState {
  bool is_regular;
  int64_t size;                  // bytes
  int64_t seconds, nanoseconds;  // of the last change, as precisely as the system has it

  bool operator==(const FileState&) const = default;
};

// Functions that fail return -1, or false, and leave the reason in errno.
#if defined(_WIN32)

// `path` is UTF-8.
inline int open_to_read(const char* path) {
  const int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, nullptr, 0);
  if (length == 0) return errno = EINVAL, -1;
  std::wstring wide(static_cast<size_t>(length), L'\0');
  MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide.data(), length);
  return _wopen(wide.c_str(), _O_RDONLY | _O_BINARY | _O_NOINHERIT);
}

inline bool get_state(int file, FileState& state) {
  struct _stat64 found;
  if (_fstat64(file, &found) != 0) return false;
  state = {(found.st_mode & _S_IFMT) == _S_IFREG, found.st_size, found.st_mtime, 0};
  return true;
}

inline void will_read_in_order(int) {}

inline int64_t read_next(int file, char* to, size_t bytes) {
  return _read(file, to, static_cast<unsigned>(bytes < (1u << 30) ? bytes : 1u << 30));
}

// Several threads may read one file.
inline int64_t read_at(int file, char* to, size_t bytes, uint64_t at) {
  OVERLAPPED place{};
  place.Offset = static_cast<DWORD>(at);
  place.OffsetHigh = static_cast<DWORD>(at >> 32);
  DWORD got = 0;
  const auto most = static_cast<DWORD>(bytes < (1u << 30) ? bytes : 1u << 30);
  if (ReadFile(reinterpret_cast<HANDLE>(_get_osfhandle(file)), to, most, &got, &place) == 0) {
    if (GetLastError() == ERROR_HANDLE_EOF) return 0;
    return errno = EIO, -1;
  }
  return got;
}

inline void close_file(int file) { _close(file); }

#else

inline int open_to_read(const char* path) { return open(path, O_RDONLY | O_CLOEXEC); }

inline bool get_state(int file, FileState& state) {
  struct stat found;
  if (fstat(file, &found) != 0) return false;
#if defined(__APPLE__)
  const timespec changed = found.st_mtimespec;
#else
  const timespec changed = found.st_mtim;
#endif
  state = {S_ISREG(found.st_mode), found.st_size, changed.tv_sec, changed.tv_nsec};
  return true;
}

inline void will_read_in_order([[maybe_unused]] int file) {
#if defined(POSIX_FADV_SEQUENTIAL)
  (void)posix_fadvise(file, 0, 0, POSIX_FADV_SEQUENTIAL);
#endif
}

inline int64_t read_next(int file, char* to, size_t bytes) { return read(file, to, bytes); }

// Several threads may read one file.
inline int64_t read_at(int file, char* to, size_t bytes, uint64_t at) {
  return pread(file, to, bytes, static_cast<off_t>(at));
}

inline void close_file(int file) { close(file); }

#endif

// ---- memory ----

// When the pages of map_pages() are there: at the first touch of each; at once, which takes less time than a page fault
// for each small one; or at the first touch, and more of them may be mapped than the machine has.
enum class Pages { kAtFirstTouch, kAtOnce, kMoreThanThereAre };

// Without kMapsPages, map_pages() always fails, and the rest is not to be called.
#if defined(__linux__)

constexpr bool kMapsPages = true;

// Pages of zeros; null if there are none.
inline char* map_pages(size_t bytes, Pages pages) {
  const int when = pages == Pages::kAtOnce ? MAP_POPULATE : pages == Pages::kMoreThanThereAre ? MAP_NORESERVE : 0;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | when, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}
inline void unmap_pages(void* begin, size_t bytes) { munmap(begin, bytes); }
inline void prefer_huge_pages(void* begin, size_t bytes) { (void)madvise(begin, bytes, MADV_HUGEPAGE); }
// To the place of other mapped pages, which are replaced.
inline bool move_pages(void* begin, size_t bytes, void* to) {
  return mremap(begin, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED;
}
// The system may take the pages when it needs memory, or takes them now; the next touch finds zeros.
inline bool offer_pages(void* begin, size_t bytes) { return madvise(begin, bytes, MADV_FREE) == 0; }
inline void give_back_pages(void* begin, size_t bytes) { (void)madvise(begin, bytes, MADV_DONTNEED); }
inline size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
// Bytes.
inline size_t memory_size() { return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * page_size(); }

#else

constexpr bool kMapsPages = false;
inline char* map_pages(size_t, Pages) { return nullptr; }
inline void unmap_pages(void*, size_t) {}
inline void prefer_huge_pages(void*, size_t) {}
inline bool move_pages(void*, size_t, void*) { return false; }
inline bool offer_pages(void*, size_t) { return false; }
inline void give_back_pages(void*, size_t) {}
inline size_t page_size() { return 4096; }
inline size_t memory_size() { return SIZE_MAX; }  // unknown

#endif

// ---- processes ----

// Calls `before` before each fork, and `after` after it in both processes.
inline void at_fork([[maybe_unused]] void (*before)(), [[maybe_unused]] void (*after)()) {
#if defined(__linux__)
  pthread_atfork(before, after, after);
#endif
}

// Whether the system lets this process use AMX's tiles, which it saves for those only that have asked.
inline bool allows_amx() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace bertnli

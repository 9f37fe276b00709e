#include "digest.h"

#include <bit>
#include <cstring>

namespace bertnli {

std::string digest(std::string_view bytes) {
  // Four lanes of words. Each step is a bijection of the lane for a given word and of the word for a given lane, so a
  // single difference is never lost; and the rotation stands between two products, so that a difference of one high bit
  // has become one of many bits when the next word comes.
  constexpr uint64_t kOdd[2] = {0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u};
  uint64_t lanes[4] = {kOdd[0], kOdd[1], ~kOdd[0], ~kOdd[1]};
  const auto block = [&](const char* p) {
    uint64_t words[4];
    std::memcpy(words, p, sizeof words);
    for (int i = 0; i < 4; ++i) lanes[i] = std::rotl(lanes[i] ^ words[i] * kOdd[0], 29) * kOdd[1];
  };
  const char *p = bytes.data(), *end = p + bytes.size();
  for (; end - p >= 32; p += 32) block(p);
  char last[32] = {};
  if (p < end) std::memcpy(last, p, static_cast<size_t>(end - p));
  block(last);
  const auto mix = [](uint64_t x, uint64_t odd) {
    x = (x ^ x >> 32) * odd;
    x = (x ^ x >> 29) * odd;
    return x ^ x >> 32;
  };
  std::string hex;
  for (const uint64_t odd : kOdd) {
    uint64_t sum = mix(bytes.size(), odd);
    for (const uint64_t lane : lanes) sum = mix(sum ^ lane, odd) + lane;
    for (int shift = 60; shift >= 0; shift -= 4) hex += "0123456789abcdef"[sum >> shift & 15];
  }
  return hex;
}

}  // namespace bertnli

#include "trie.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace bertnli {

Trie::Trie(const VocabItems& vocab) : nodes_(512) {
  auto items = vocab;
  std::sort(items.begin(), items.end());
  struct Todo {
    int32_t node;
    size_t first, last, depth;  // items [first, last) share their first `depth` bytes, the path to `node`
  };
  std::vector<Todo> todo{{kRoot, 0, items.size(), 0}};
  std::vector<std::pair<unsigned char, size_t>> children;  // byte, its first item
  size_t free = 257;                                       // first slot to try (bases stay above 0)
  constexpr size_t kMostTries = 1000;                      // beyond, `free` moves on: building stays linear
  const auto taken = [this](size_t i) { return i < nodes_.size() && nodes_[i].check != kNone; };
  while (!todo.empty()) {
    Todo t = todo.back();
    todo.pop_back();
    while (t.first < t.last && items[t.first].first.size() == t.depth) {
      nodes_[static_cast<size_t>(t.node)].id = items[t.first++].second;
    }
    children.clear();
    for (size_t i = t.first; i < t.last; ++i) {
      const auto b = static_cast<unsigned char>(items[i].first[t.depth]);
      if (children.empty() || children.back().first != b) children.emplace_back(b, i);
    }
    if (children.empty()) continue;
    while (taken(free)) ++free;
    size_t base = free - children[0].first;
    const size_t far = base + kMostTries;
    const auto clash = [&](const auto& c) { return taken(base + c.first); };
    while (std::any_of(children.begin(), children.end(), clash)) ++base;
    if (base > far) free = base + children[0].first;  // otherwise every later node would try these slots again
    if (nodes_.size() < base + 256) nodes_.resize(std::max(base + 256, nodes_.size() * 3 / 2));
    nodes_[static_cast<size_t>(t.node)].base = static_cast<int32_t>(base);
    for (size_t k = 0; k < children.size(); ++k) {
      const size_t c = base + children[k].first;
      nodes_[c].check = t.node;
      nodes_[static_cast<size_t>(t.node)].children |= 1u << children[k].first % 32;
      const size_t last = k + 1 < children.size() ? children[k + 1].second : t.last;
      todo.push_back({static_cast<int32_t>(c), children[k].second, last, t.depth + 1});
    }
  }
}

Trie::Starts::Starts(const Trie& trie, int32_t from) : table_(128 * 128) {
  if (from == kNone) return;
  for (unsigned a = 0; a < 128; ++a) {
    const int32_t first = trie.child(from, static_cast<unsigned char>(a));
    if (first == kNone) continue;
    for (unsigned b = 0; b < 128; ++b) {
      Start& start = table_[a * 128 + b];
      const auto token = [&](int32_t node, uint32_t size) {
        if (trie.id(node) >= 0) start.token = static_cast<uint32_t>(trie.id(node)) * 4 + size;
      };
      token(first, 1);
      const int32_t second = b != 0 ? trie.child(first, static_cast<unsigned char>(b)) : kNone;
      if (second == kNone) continue;
      token(second, 2);
      start.place = trie.place(second);
    }
  }
}

static uint64_t hash_bytes(std::string_view s) {
  uint64_t h = 0x9E3779B97F4A7C15u ^ s.size();
  const auto mix = [&h](uint64_t w) {
    h = (h ^ w) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  };
  size_t i = 0;
  uint64_t w;
  for (; i + 8 <= s.size(); i += 8) {
    std::memcpy(&w, s.data() + i, 8);
    mix(w);
  }
  w = 0;
  if (i < s.size()) std::memcpy(&w, s.data() + i, s.size() - i);
  mix(w);
  return h;
}

StringMap::StringMap(const VocabItems& items) {
  const size_t slots = std::bit_ceil(items.size() * 2 + 2);
  mask_ = slots - 1;
  entries_.assign(slots, Entry{0, 0, 0, -1});
  for (const auto& [key, id] : items) {
    const uint64_t h = hash_bytes(key);
    size_t i = h & mask_;
    while (entries_[i].id >= 0) i = (i + 1) & mask_;  // keys of a dict: no two are equal
    entries_[i] = {h, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(key.size()), id};
    bytes_ += key;
  }
}

int32_t StringMap::find(std::string_view s, int32_t missing) const {
  const uint64_t h = hash_bytes(s);
  for (size_t i = h & mask_; entries_[i].id >= 0; i = (i + 1) & mask_) {
    const Entry& e = entries_[i];
    if (e.hash == h && std::string_view(bytes_.data() + e.offset, e.size) == s) return e.id;
  }
  return missing;
}

}  // namespace bertnli

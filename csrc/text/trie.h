// Vocabularies: a trie that finds the longest piece, and a map of whole words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bertnli {

using VocabItems = std::vector<std::pair<std::string, int32_t>>;  // no two tokens equal, ids from 0

// A double-array trie over bytes: the child b of node n is base[n] + b where check says so.
class Trie {
 public:
  explicit Trie(const VocabItems& items);
  static constexpr int32_t kRoot = 0, kNone = -1;
  // A node (or none) and where its children are. Most absent children are excluded by `children`, without a memory
  // access.
  struct Place {
    int32_t node = kNone, base = 0;
    uint32_t children = 0;  // bit b % 32 is set for the byte b of each child
    bool may_go_on(unsigned char b) const { return (children >> b % 32 & 1) != 0; }
  };
  Place place(int32_t n) const {
    if (n == kNone) return {};
    const Node& node = nodes_[static_cast<size_t>(n)];
    return {n, node.base, node.children};
  }
  // The child of a place for which may_go_on(b) holds.
  int32_t child(const Place& at, unsigned char b) const {
    const auto c = static_cast<size_t>(at.base + b);  // 256 nodes follow every base
    return nodes_[c].check == at.node ? static_cast<int32_t>(c) : kNone;
  }
  int32_t child(int32_t n, unsigned char b) const {
    const Place at = place(n);
    return at.may_go_on(b) ? child(at, b) : kNone;
  }
  int32_t find(std::string_view prefix) const {
    int32_t n = kRoot;
    for (size_t i = 0; i < prefix.size() && n != kNone; ++i) n = child(n, static_cast<unsigned char>(prefix[i]));
    return n;
  }
  int32_t id(int32_t n) const { return nodes_[static_cast<size_t>(n)].id; }

  // The place after the ASCII bytes a and b from a node, and the longest token of a and ab: its id times 4 plus its
  // size, or 0 if neither is a token. b is 0 if no byte follows a.
  struct Start {
    Place place;
    uint32_t token = 0;
    int32_t id() const { return static_cast<int32_t>(token / 4); }
    uint32_t size() const { return token % 4; }
  };
  class Starts {
   public:
    Starts(const Trie& trie, int32_t from);
    const Start& of(unsigned char a, unsigned char b) const { return table_[a * 128u + b]; }

   private:
    std::vector<Start> table_;
  };

 private:
  struct Node {
    int32_t base = 0, check = kNone, id = -1;
    uint32_t children = 0;
  };
  std::vector<Node> nodes_;
};

// Strings to ids; open addressing over one block of bytes.
class StringMap {
 public:
  explicit StringMap(const VocabItems& items);
  int32_t find(std::string_view s, int32_t missing) const;

 private:
  struct Entry {
    uint64_t hash;
    uint32_t offset, size;
    int32_t id;
  };
  std::string bytes_;
  std::vector<Entry> entries_;
  size_t mask_ = 0;
};

}  // namespace bertnli

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/kv/block_entry.hpp>
#include <cstdint>
#include <iterator>
#include <list>
#include <mutex>
#include <unordered_map>

namespace blockattn::inline BLOCKATTN_ABI::kv {

/// What a store did and holds. retained_bytes + draft_bytes <= byte_budget at every moment.
struct block_store_counters {
  std::int64_t hits = 0;
  std::int64_t misses = 0;
  std::int64_t insertions = 0;  ///< commits that became visible
  std::int64_t evictions = 0;   ///< blocks that left to make room
  std::int64_t refusals = 0;    ///< drafts for which there was no room
  index_t entries = 0;          ///< visible blocks
  index_t retained_bytes = 0;   ///< of visible blocks
  index_t pinned_bytes = 0;     ///< of visible blocks that a handle pins; part of retained_bytes
  index_t draft_bytes = 0;      ///< of drafts that are neither committed nor dropped
};

namespace detail {

/// The shared state of a block store: which blocks are visible, in which order they were used, who
/// pins them. Every member locks. Blocks' memory is neither allocated nor released under the lock:
/// blocks that leave are moved out in a list.
class block_index {
 public:
  using entries = std::list<block_entry>;  // nodes move between lists without changing address

  explicit block_index(index_t byte_budget) : byte_budget_(byte_budget) {}

  /// Takes room for a draft of `bytes`, moving the least recently used unpinned blocks to
  /// `evicted` as needed. When all of them together would not make room: false, and nothing is
  /// evicted. O(blocks passed over).
  bool reserve(index_t bytes, entries& evicted) {
    const std::lock_guard lock(mutex_);
    if (bytes > byte_budget_ - counters_.pinned_bytes - counters_.draft_bytes) {
      ++counters_.refusals;
      return false;
    }
    auto candidate = by_use_.end();
    while (bytes > byte_budget_ - counters_.retained_bytes - counters_.draft_bytes) {
      --candidate;
      if (candidate->pins > 0) continue;
      const auto victim = candidate++;
      forget(victim);
      ++counters_.evictions;
      evicted.splice(evicted.end(), by_use_, victim);
    }
    counters_.draft_bytes += bytes;
    return true;
  }

  /// Gives up the room of a draft that is not committed.
  void unreserve(index_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    counters_.draft_bytes -= bytes;
  }

  /// For a draft that had room in the budget but got no memory from the storage.
  void count_refusal() noexcept {
    const std::lock_guard lock(mutex_);
    ++counters_.refusals;
  }

  /// Makes the one entry of `draft` visible and pins it; when another thread was first, pins that
  /// block and leaves the draft where it is, its room still taken. Errors: the first block has
  /// another shape.
  block_entry* commit(entries& draft) {
    const std::lock_guard lock(mutex_);
    const block_entry& written = draft.front();
    const index_t bytes = block_bytes(written.shape);
    if (const auto first = lookup(written.key, written.hash); first != by_use_.end()) {
      blockattn::detail::require(first->shape == written.shape,
                                 "block_store::commit: the store has a block with the same "
                                 "key but another shape (",
                                 first->shape.layers, " layers of ", first->shape.tokens,
                                 " tokens, not ", written.shape.layers, " of ",
                                 written.shape.tokens, "): the key does not name the model");
      return pin(first);
    }
    by_hash_.emplace(written.hash, draft.begin());
    by_use_.splice(by_use_.begin(), draft);
    counters_.draft_bytes -= bytes;
    counters_.retained_bytes += bytes;
    ++counters_.insertions;
    ++counters_.entries;
    return pin(by_use_.begin());
  }

  /// Pins a block and makes it the most recently used; nullptr when there is none.
  block_entry* find(const block_key& key, std::uint64_t hash) {
    const std::lock_guard lock(mutex_);
    const auto found = lookup(key, hash);
    if (found == by_use_.end()) {
      ++counters_.misses;
      return nullptr;
    }
    ++counters_.hits;
    return pin(found);
  }

  /// One more pin on a block that has one.
  void pin_again(block_entry& entry) noexcept {
    const std::lock_guard lock(mutex_);
    ++entry.pins;
  }

  void unpin(block_entry& entry) noexcept {
    const std::lock_guard lock(mutex_);
    if (--entry.pins == 0) counters_.pinned_bytes -= block_bytes(entry.shape);
  }

  block_store_counters counters() const {
    const std::lock_guard lock(mutex_);
    return counters_;
  }

  index_t byte_budget() const noexcept { return byte_budget_; }

 private:
  entries::iterator lookup(const block_key& key, std::uint64_t hash) {
    const auto [begin, end] = by_hash_.equal_range(hash);
    for (auto candidate = begin; candidate != end; ++candidate) {
      if (candidate->second->key == key) return candidate->second;
    }
    return by_use_.end();
  }

  block_entry* pin(entries::iterator entry) {
    by_use_.splice(by_use_.begin(), by_use_, entry);
    if (entry->pins++ == 0) counters_.pinned_bytes += block_bytes(entry->shape);
    return &*entry;
  }

  void forget(entries::iterator entry) {
    const auto [begin, end] = by_hash_.equal_range(entry->hash);
    for (auto candidate = begin; candidate != end; ++candidate) {
      if (candidate->second != entry) continue;
      by_hash_.erase(candidate);
      break;
    }
    counters_.retained_bytes -= block_bytes(entry->shape);
    --counters_.entries;
  }

  const index_t byte_budget_;
  mutable std::mutex mutex_;
  entries by_use_;  // most recently used first
  std::unordered_multimap<std::uint64_t, entries::iterator> by_hash_;
  block_store_counters counters_;
};

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI::kv

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/key_segment.hpp>
#include <blockattn/kv/block_index.hpp>
#include <blockattn/kv/block_storage.hpp>
#include <memory>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI::kv {

/// A pin on a block of a store: while it lives, the block is not evicted and its views stay valid.
/// Empty after a miss. Copies pin again; handles of one block may be used by several threads at
/// once, each thread its own handle. A handle keeps the memory alive even when it outlives the
/// store.
class cached_block {
 public:
  cached_block() = default;
  cached_block(const cached_block& other) : index_(other.index_), entry_(other.entry_) {
    if (entry_ != nullptr) index_->pin_again(*entry_);
  }
  cached_block(cached_block&& other) noexcept
      : index_(std::move(other.index_)), entry_(std::exchange(other.entry_, nullptr)) {}
  cached_block& operator=(cached_block other) noexcept {
    std::swap(index_, other.index_);
    std::swap(entry_, other.entry_);
    return *this;
  }
  ~cached_block() {
    if (entry_ != nullptr) index_->unpin(*entry_);
  }

  /// False when there is no block.
  explicit operator bool() const noexcept { return entry_ != nullptr; }

  const block_key& key() const { return entry("cached_block::key").key; }
  const block_shape& shape() const { return entry("cached_block::shape").shape; }

  /// The keys of a layer, (tokens, kv_heads, head_dim), rotated for positions
  /// 0, 1, ..., tokens - 1. Errors, as for v and segment: an empty handle; no such layer; T of
  /// another storage format.
  template <storage_scalar T>
  heads_view<const T> k(index_t layer) const {
    return entry("cached_block::k").k<const T>("cached_block::k", layer);
  }

  /// The values of a layer, (tokens, kv_heads, value_dim).
  template <storage_scalar T>
  heads_view<const T> v(index_t layer) const {
    return entry("cached_block::v").v<const T>("cached_block::v", layer);
  }

  /// The block as it stands in a prompt with its first token at position `offset`, read in place.
  /// Any number of segments of one block, at different offsets, may be in use at the same time.
  template <storage_scalar K = float, storage_scalar V = K>
  key_segment<K, V> segment(index_t layer, double offset) const {
    return {.k = k<K>(layer), .v = v<V>(layer), .query_shift = -offset};
  }

 private:
  template <block_storage, class>
  friend class block_store;

  /// Takes over a pin.
  cached_block(std::shared_ptr<detail::block_index> index, detail::block_entry* entry) noexcept
      : index_(std::move(index)), entry_(entry) {}

  const detail::block_entry& entry(const char* function) const {
    blockattn::detail::require(entry_ != nullptr, function, ": the handle is empty");
    return *entry_;
  }

  std::shared_ptr<detail::block_index> index_;
  detail::block_entry* entry_ = nullptr;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::kv

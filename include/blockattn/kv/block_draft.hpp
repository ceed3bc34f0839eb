// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/kv/block_index.hpp>
#include <blockattn/kv/block_storage.hpp>
#include <memory>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI::kv {

/// A block that is being written: room in a store that nobody else sees. Fill k and v of every
/// layer, then commit; a draft that is dropped instead gives its room back. Memory starts
/// uninitialised. Empty when the store had no room.
class block_draft {
 public:
  block_draft() = default;
  block_draft(block_draft&&) noexcept = default;
  block_draft& operator=(block_draft other) noexcept {
    std::swap(index_, other.index_);
    std::swap(entry_, other.entry_);
    return *this;
  }
  ~block_draft() { release(); }

  /// False when there is nothing to write to.
  explicit operator bool() const noexcept { return !entry_.empty(); }

  const block_shape& shape() const { return entry("block_draft::shape").shape; }

  /// Where the keys of a layer go, (tokens, kv_heads, head_dim), rotated for positions 0, 1, ...,
  /// tokens - 1. Errors, as for v: an empty draft; no such layer; T of another storage format.
  template <storage_scalar T>
  heads_view<T> k(index_t layer) const {
    return entry("block_draft::k").k<T>("block_draft::k", layer);
  }

  /// Where the values of a layer go, (tokens, kv_heads, value_dim).
  template <storage_scalar T>
  heads_view<T> v(index_t layer) const {
    return entry("block_draft::v").v<T>("block_draft::v", layer);
  }

 private:
  template <block_storage, class>
  friend class block_store;

  /// Takes over room that was reserved for the one entry.
  block_draft(std::shared_ptr<detail::block_index> index,
              detail::block_index::entries entry) noexcept
      : index_(std::move(index)), entry_(std::move(entry)) {}

  const detail::block_entry& entry(const char* function) const {
    blockattn::detail::require(!entry_.empty(), function, ": the draft is empty");
    return entry_.front();
  }

  void release() noexcept {
    if (entry_.empty()) return;
    const index_t bytes = block_bytes(entry_.front().shape);
    entry_.clear();
    index_->unreserve(bytes);
  }

  std::shared_ptr<detail::block_index> index_;
  detail::block_index::entries entry_;  // one, or none
};

}  // namespace blockattn::inline BLOCKATTN_ABI::kv

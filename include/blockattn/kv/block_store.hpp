// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/kv/block_draft.hpp>
#include <blockattn/kv/block_index.hpp>
#include <blockattn/kv/block_key.hpp>
#include <blockattn/kv/block_shape.hpp>
#include <blockattn/kv/block_storage.hpp>
#include <blockattn/kv/cached_block.hpp>
#include <cstdint>
#include <memory>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI::kv {

struct block_store_options {
  index_t byte_budget = 0;  ///< for blocks and drafts together, >= 0; keys come on top
};

/// Keys and values of token blocks, found by what they were computed from. Blocks never change and
/// never move: one copy serves any number of prompts, at any place in them, at the same time.
///
/// A miss is answered in two steps, so that a block becomes visible only when it is complete:
///   cached_block block = store.find(key);
///   if (!block) {
///     block_draft draft = store.begin_insert(key, shape);
///     if (draft) { /* fill draft.k and draft.v of every layer */ }
///     block = store.commit(std::move(draft));
///   }
/// The least recently found blocks leave when room is needed; pinned ones (see cached_block) stay.
///
/// Every member may be called from several threads at once. One lock guards the index; it is never
/// held while blocks' memory is allocated, released or written, so that while n threads insert, the
/// storage may briefly hold up to n blocks beyond the budget that are on their way out. The store
/// owns no threads.
template <block_storage Storage = heap_storage, class Hash = block_key_hash>
class block_store {
 public:
  /// Errors: a negative byte_budget.
  explicit block_store(const block_store_options& options, Storage storage = {}, Hash hash = {})
      : storage_(std::make_shared<Storage>(std::move(storage))),
        hash_(std::move(hash)),
        index_(std::make_shared<detail::block_index>(options.byte_budget)) {
    blockattn::detail::require(options.byte_budget >= 0, "block_store: byte_budget is ",
                               options.byte_budget, ", must not be negative");
  }

  /// The block with this key, pinned and now the most recently used, or an empty handle. Expected
  /// O(key bytes).
  cached_block find(const block_key& key) {
    detail::block_entry* const entry = index_->find(key, hash_(key));
    return entry == nullptr ? cached_block() : cached_block(index_, entry);
  }

  /// Room to write a block. Evicts as many unpinned blocks as that takes. An empty draft when
  /// pinned blocks and other drafts leave too little of the budget (always so for a block larger
  /// than the budget), in which case nothing is evicted, or when the storage has no memory: the
  /// engine then computes into memory of its own. Errors: negative or uncountable sizes in `shape`; a
  /// shape of other tokens or formats than the key names.
  block_draft begin_insert(const block_key& key, const block_shape& shape) {
    constexpr const char* function = "block_store::begin_insert";
    detail::check_shape(function, shape);
    blockattn::detail::require(key.tokens() == shape.tokens, function, ": the key names ",
                               key.tokens(), " tokens but shape.tokens is ", shape.tokens);
    blockattn::detail::require(
        key.key_format() == shape.key_format && key.value_format() == shape.value_format, function,
        ": the key says ", detail::name_of(key.key_format()), " keys and ",
        detail::name_of(key.value_format()), " values but the shape ",
        detail::name_of(shape.key_format), " and ", detail::name_of(shape.value_format));
    const index_t bytes = block_bytes(shape);
    detail::block_index::entries entry;
    entry.push_back({key, hash_(key), shape, nullptr});
    {
      detail::block_index::entries evicted;
      if (!index_->reserve(bytes, evicted)) return {};
    }  // evicted memory is back in the storage before more is asked for
    block_draft draft(index_, std::move(entry));  // gives the room back whatever happens next
    if (bytes > 0) {
      draft.entry_.front().memory = allocate(bytes);
      if (draft.entry_.front().memory == nullptr) {
        index_->count_refusal();
        return {};
      }
    }
    return draft;
  }

  /// Makes a complete draft visible and returns it pinned. When another thread committed the same
  /// key meanwhile, that block is kept and returned and the draft is dropped. An empty draft gives
  /// an empty handle. Errors: a draft of another store; a block with the same key and another
  /// shape.
  cached_block commit(block_draft draft) {
    if (!draft) return {};
    blockattn::detail::require(draft.index_ == index_,
                               "block_store::commit: the draft belongs to another store");
    detail::block_entry* const entry = index_->commit(draft.entry_);
    return cached_block(index_, entry);
  }

  block_store_counters counters() const { return index_->counters(); }
  index_t byte_budget() const noexcept { return index_->byte_budget(); }

 private:
  /// Memory that returns to the storage by itself, also after the store is gone.
  std::shared_ptr<std::byte> allocate(index_t bytes) {
    std::byte* const memory = storage_->allocate(bytes);
    if (memory == nullptr) return nullptr;
    return {memory, [storage = storage_, bytes](std::byte* m) { storage->release(m, bytes); }};
  }

  std::shared_ptr<Storage> storage_;
  Hash hash_;
  std::shared_ptr<detail::block_index> index_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::kv

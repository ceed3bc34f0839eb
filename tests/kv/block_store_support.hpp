// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <blockattn/kv/block_store.hpp>
#include <cstdint>
#include <memory>
#include <vector>

namespace blockattn_test {

using namespace blockattn;

/// Heap memory that is counted; `exhausted` makes it give none.
struct counting_storage {
  struct state {
    std::atomic<index_t> live_bytes = 0;
    std::atomic<index_t> peak_bytes = 0;
    std::atomic<bool> exhausted = false;
  };
  std::shared_ptr<state> shared = std::make_shared<state>();

  std::byte* allocate(index_t bytes) {
    if (shared->exhausted) return nullptr;
    const index_t now = shared->live_bytes += bytes;
    index_t peak = shared->peak_bytes;
    while (now > peak && !shared->peak_bytes.compare_exchange_weak(peak, now)) {
    }
    return kv::heap_storage{}.allocate(bytes);
  }
  void release(std::byte* memory, index_t bytes) {
    shared->live_bytes -= bytes;
    kv::heap_storage{}.release(memory, bytes);
  }
};

/// The worst hash: every key is a candidate.
struct constant_hash {
  std::uint64_t operator()(const kv::block_key&) const noexcept { return 7; }
};

/// The key of a block that repeats one token.
inline kv::block_key key_of(std::int32_t token, index_t tokens = 1) {
  const std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens), token);
  return kv::block_key({.tokens = ids, .model_fingerprint = "model"});
}

/// 1 layer, 1 head, 8 + 8 values: 64 bytes per token.
inline kv::block_shape shape_of(index_t tokens) {
  return {.layers = 1, .kv_heads = 1, .tokens = tokens, .head_dim = 8, .value_dim = 8};
}

/// Inserts a block whose every value is `token`; an empty handle when there is no room.
template <class Store>
kv::cached_block insert(Store& store, std::int32_t token, index_t tokens = 1) {
  kv::block_draft draft = store.begin_insert(key_of(token, tokens), shape_of(tokens));
  if (!draft) return {};
  for (const heads_view<float>& view : {draft.k<float>(0), draft.v<float>(0)}) {
    for (index_t t = 0; t < view.tokens; ++t) {
      for (index_t i = 0; i < view.head_dim; ++i) view.row(t, 0)[i] = static_cast<float>(token);
    }
  }
  return store.commit(std::move(draft));
}

/// True when a block holds what insert wrote for `token`.
inline bool holds(const kv::cached_block& block, std::int32_t token) {
  for (const heads_view<const float>& view : {block.k<float>(0), block.v<float>(0)}) {
    for (index_t t = 0; t < view.tokens; ++t) {
      for (index_t i = 0; i < view.head_dim; ++i) {
        if (view.row(t, 0)[i] != static_cast<float>(token)) return false;
      }
    }
  }
  return true;
}

}  // namespace blockattn_test

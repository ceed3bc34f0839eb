// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/kv/block_store.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <utility>

#include "masked_attention.hpp"

namespace rag {

using block_store = ba::kv::block_store<>;

/// Computes a token block alone and leaves its keys and values in the store; an empty handle when
/// the store has no room. `run(attend)` carries the block's tokens through a model at positions
/// 0, 1, ... and calls `attend(layer, attention_inputs)` once in each layer. The shape is in fp32.
template <class Run, class Executor>
ba::kv::cached_block encode_block(block_store& store,
                                  const ba::kv::block_key& key,
                                  const ba::kv::block_shape& shape,
                                  const Executor& workers,
                                  const Run& run) {
  ba::kv::block_draft draft = store.begin_insert(key, shape);
  if (!draft) return {};
  masked_attention attention(ba::causal_mask(shape.tokens), shape.head_dim);
  run([&](ba::index_t layer, const attention_inputs& in) {
    copy_rows(in.k, draft.k<float>(layer));
    copy_rows(in.v, draft.v<float>(layer));
    attention(in, workers);
  });
  return store.commit(std::move(draft));
}

}  // namespace rag

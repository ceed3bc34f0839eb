// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/kv/cached_block.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <functional>
#include <span>
#include <vector>

#include "masked_attention.hpp"
#include "transformer.hpp"

namespace rag {

/// One prompt as it grows: cached blocks that are read where they lie, then the prompt's own keys
/// and values. `prefill` and `extend` compute new tokens at the next positions and return the
/// logits of the last one.
class conversation {
 public:
  /// Called after each layer, for progress.
  using layer_function = std::function<void()>;

  /// \param capacity  most tokens that the prompt itself (without cached blocks) will have
  conversation(transformer& model, ba::index_t capacity);

  /// Puts a cached block at the next positions and keeps it pinned. Its keys do not move and are
  /// not rotated again. All blocks come before the first token.
  void append_block(ba::kv::cached_block block);

  /// Computes the whole prompt at once under a mask, for a conversation that is still empty.
  std::vector<float> prefill(std::span<const token> tokens,
                             const ba::attention_mask& mask,
                             const layer_function& on_layer = {});

  /// Computes tokens that see everything before them.
  std::vector<float> extend(std::span<const token> tokens, const layer_function& on_layer = {});

  /// The residual stream behind the last layer of the latest call (tokens, width).
  const matrix& states() const { return states_; }

 private:
  std::vector<float> run(std::span<const token> tokens,
                         const transformer::attend_function& attend,
                         const layer_function& on_layer);
  /// Copies the new keys and values of a layer behind the prompt's own ones.
  void append_own(ba::index_t layer, const attention_inputs& inputs);
  /// The first `tokens` rows of a layer of own_keys_ or own_values_.
  ba::heads_view<float> own(std::vector<matrix>& layers,
                            ba::index_t layer,
                            ba::index_t tokens) const;

  transformer& model_;
  std::vector<ba::kv::cached_block> blocks_;                   // pins
  std::vector<std::vector<ba::key_segment<float>>> segments_;  // (layers) of (blocks)
  std::vector<matrix> own_keys_;    // (layers) of (capacity, kv_heads * head_dim)
  std::vector<matrix> own_values_;  // (layers), alike
  ba::index_t own_tokens_ = 0;
  ba::index_t position_ = 0;  // of the next token
  matrix states_;
  scratch_memory scratch_;
};

}  // namespace rag

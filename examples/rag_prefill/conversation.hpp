// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "cached_prompt.hpp"
#include "transformer.hpp"

namespace rag {

/// A model and one prompt as it grows. `prefill` and `extend` compute new tokens at the next
/// positions and return the logits of the last one.
class conversation {
 public:
  /// Called after each layer, for progress.
  using layer_function = std::function<void()>;

  /// \param capacity  most tokens that the prompt itself (without cached blocks) will have
  conversation(transformer& model, ba::index_t capacity);

  /// Puts a cached block at the next positions. All blocks come before the first token.
  void append_block(ba::kv::cached_block block) { prompt_.append_block(std::move(block)); }

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

  transformer& model_;
  cached_prompt prompt_;
  matrix states_;
};

}  // namespace rag

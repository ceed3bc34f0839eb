// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "conversation.hpp"

#include <numeric>

#include "input_error.hpp"

namespace rag {

conversation::conversation(transformer& model, ba::index_t capacity)
    : model_(model),
      prompt_(model.shape().layers, model.shape().kv_heads, model.shape().head_dim, capacity) {}

std::vector<float> conversation::prefill(std::span<const token> tokens,
                                         const ba::attention_mask& mask,
                                         const layer_function& on_layer) {
  masked_attention attention(mask, model_.shape().head_dim);
  const auto attend = [&](ba::index_t layer, const attention_inputs& in) {
    prompt_.append_own(layer, in);
    attention(in, model_.workers());
  };
  return run(tokens, attend, on_layer);
}

std::vector<float> conversation::extend(std::span<const token> tokens,
                                        const layer_function& on_layer) {
  const auto attend = [&](ba::index_t layer, const attention_inputs& in) {
    prompt_.attend(layer, in, model_.rope(), model_.workers());
  };
  return run(tokens, attend, on_layer);
}

std::vector<float> conversation::run(std::span<const token> tokens,
                                     const transformer::attend_function& attend,
                                     const layer_function& on_layer) {
  const ba::index_t count = std::ssize(tokens);
  require(count <= prompt_.capacity_left(), "the conversation has room for ", prompt_.capacity(),
          " tokens, not for ", prompt_.capacity() - prompt_.capacity_left() + count);
  std::vector<double> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), static_cast<double>(prompt_.position()));
  states_ = model_.run(tokens, positions, [&](ba::index_t layer, const attention_inputs& inputs) {
    attend(layer, inputs);
    if (on_layer) on_layer();
  });
  prompt_.advance(count);
  return model_.logits(states_.bottomRows(1));
}

}  // namespace rag

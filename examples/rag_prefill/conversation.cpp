// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "conversation.hpp"

#include <blockattn/cpu/attend_blocks.hpp>
#include <numeric>
#include <utility>

#include "input_error.hpp"

namespace rag {

conversation::conversation(transformer& model, ba::index_t capacity)
    : model_(model), segments_(static_cast<std::size_t>(model.shape().layers)) {
  const llama_shape& shape = model.shape();
  for (ba::index_t layer = 0; layer < shape.layers; ++layer) {
    own_keys_.emplace_back(capacity, shape.kv_heads * shape.head_dim);
    own_values_.emplace_back(capacity, shape.kv_heads * shape.head_dim);
  }
}

void conversation::append_block(ba::kv::cached_block block) {
  for (std::size_t layer = 0; layer < segments_.size(); ++layer) {
    segments_[layer].push_back(
        block.segment(static_cast<ba::index_t>(layer), static_cast<double>(position_)));
  }
  position_ += block.shape().tokens;
  blocks_.push_back(std::move(block));
}

std::vector<float> conversation::prefill(std::span<const token> tokens,
                                         const ba::attention_mask& mask,
                                         const layer_function& on_layer) {
  masked_attention attention(mask, model_.shape().head_dim);
  const auto attend = [&](ba::index_t layer, const attention_inputs& in) {
    append_own(layer, in);
    attention(in, model_.workers());
  };
  return run(tokens, attend, on_layer);
}

std::vector<float> conversation::extend(std::span<const token> tokens,
                                        const layer_function& on_layer) {
  const ba::eigen_executor& workers = model_.workers();
  const auto attend = [&](ba::index_t layer, const attention_inputs& in) {
    append_own(layer, in);
    const ba::index_t keys = own_tokens_ + in.k.tokens;
    const ba::attend_sequence<float> sequence = {
        .queries = {0, in.q.tokens},
        .segments = segments_[static_cast<std::size_t>(layer)],
        .tail = {.k = own(own_keys_, layer, keys), .v = own(own_values_, layer, keys)}};
    const ba::attend_arguments<float> arguments = {
        .q = in.q, .o = in.o, .sequences = std::span(&sequence, 1)};
    const auto job =
        ba::cpu::prepare_attend_blocks<float>(arguments, {.rope = &model_.rope()});
    ba::cpu::run_job("conversation::extend", job, workers,
                     scratch_.of_size(job.workspace_size(workers.concurrency())));
  };
  return run(tokens, attend, on_layer);
}

std::vector<float> conversation::run(std::span<const token> tokens,
                                     const transformer::attend_function& attend,
                                     const layer_function& on_layer) {
  const auto count = static_cast<ba::index_t>(tokens.size());
  const ba::index_t capacity = own_keys_.front().rows();
  require(own_tokens_ + count <= capacity, "the conversation has room for ", capacity,
          " tokens, not for ", own_tokens_ + count);
  std::vector<double> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), static_cast<double>(position_));
  states_ = model_.run(tokens, positions, [&](ba::index_t layer, const attention_inputs& inputs) {
    attend(layer, inputs);
    if (on_layer) on_layer();
  });
  own_tokens_ += count;
  position_ += count;
  return model_.logits(states_.bottomRows(1));
}

void conversation::append_own(ba::index_t layer, const attention_inputs& inputs) {
  const ba::index_t all = own_tokens_ + inputs.k.tokens;
  const auto behind = [&](std::vector<matrix>& layers) {
    return ba::token_slice(own(layers, layer, all), own_tokens_, inputs.k.tokens);
  };
  copy_rows(inputs.k, behind(own_keys_));
  copy_rows(inputs.v, behind(own_values_));
}

ba::heads_view<float> conversation::own(std::vector<matrix>& layers,
                                        ba::index_t layer,
                                        ba::index_t tokens) const {
  return ba::token_major(layers[static_cast<std::size_t>(layer)].data(), tokens,
                         model_.shape().kv_heads, model_.shape().head_dim);
}

}  // namespace rag

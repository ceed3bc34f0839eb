// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "block_encoder.hpp"

#include <blockattn/mask/causal_mask.hpp>
#include <numeric>

#include "input_error.hpp"
#include "masked_attention.hpp"

namespace rag {

ba::kv::block_key key_of(const transformer& model, std::span<const token> tokens) {
  return ba::kv::block_key({.tokens = tokens,
                            .model_fingerprint = model.weights().fingerprint,
                            .ropes = std::span(&model.rope(), 1)});
}

ba::kv::cached_block encode_block(transformer& model,
                                  block_store& store,
                                  std::span<const token> tokens) {
  const llama_shape& shape = model.shape();
  const auto count = static_cast<ba::index_t>(tokens.size());
  ba::kv::block_draft draft =
      store.begin_insert(key_of(model, tokens), {.layers = shape.layers,
                                                 .kv_heads = shape.kv_heads,
                                                 .tokens = count,
                                                 .head_dim = shape.head_dim,
                                                 .value_dim = shape.head_dim});
  require(static_cast<bool>(draft), "the block store has no room for a block of ", count,
          " tokens");
  std::vector<double> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), 0.0);
  masked_attention attention(ba::causal_mask(count), shape.head_dim);
  model.run(tokens, positions, [&](ba::index_t layer, const attention_inputs& in) {
    copy_rows(in.k, draft.k<float>(layer));
    copy_rows(in.v, draft.v<float>(layer));
    attention(in, model.workers());
  });
  return store.commit(std::move(draft));
}

}  // namespace rag

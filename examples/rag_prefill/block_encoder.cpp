// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "block_encoder.hpp"

#include <numeric>

#include "input_error.hpp"

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
  std::vector<double> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), 0.0);
  ba::kv::cached_block block = encode_block(
      store, key_of(model, tokens),
      {.layers = shape.layers,
       .kv_heads = shape.kv_heads,
       .tokens = std::ssize(tokens),
       .head_dim = shape.head_dim,
       .value_dim = shape.head_dim},
      model.workers(), [&](const auto& attend) { model.run(tokens, positions, attend); });
  require(static_cast<bool>(block), "the block store has no room for a block of ", tokens.size(),
          " tokens");
  return block;
}

}  // namespace rag

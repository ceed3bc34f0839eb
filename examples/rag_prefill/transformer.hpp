// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/eigen_executor.hpp>
#include <blockattn/rope/rope.hpp>
#include <functional>
#include <span>
#include <vector>

#include "masked_attention.hpp"
#include "tokenizer.hpp"
#include "weights.hpp"

namespace rag {

namespace ba = blockattn;

/// Everything of a Llama-type model but attention: embedding, RMS norms, linear layers, RoPE. Who
/// attends to what is the caller's affair.
class transformer {
 public:
  /// q, k and v lie side by side in one fused buffer.
  using attend_function = std::function<void(ba::index_t layer, const attention_inputs&)>;

  /// Refers to both arguments: they must outlive it.
  transformer(const llama_weights& weights, const ba::eigen_executor& workers);

  /// Carries tokens through all layers, calling `attend` once in each.
  /// \param positions  (tokens), fed to RoPE
  /// \return (tokens, width), the residual stream behind the last layer
  matrix run(std::span<const token> tokens,
             std::span<const double> positions,
             const attend_function& attend);

  /// (vocabulary) scores of the next token, from one row of `run`'s result.
  std::vector<float> logits(const row_vector& state);

  const llama_shape& shape() const { return weights_.shape; }
  const llama_weights& weights() const { return weights_; }
  const ba::rope& rope() const { return rope_; }
  const ba::eigen_executor& workers() const { return workers_; }

 private:
  /// The normed `states` of the residual stream.
  matrix normalized(const matrix& states, const row_vector& weight);
  void attention_part(const layer_weights& layer,
                      ba::index_t index,
                      std::span<const double> positions,
                      const attend_function& attend,
                      matrix& states);
  void feed_forward_part(const layer_weights& layer, matrix& states);

  const llama_weights& weights_;
  const ba::eigen_executor& workers_;
  ba::rope rope_;
};

}  // namespace rag

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "transformer.hpp"

#include <blockattn/rope/rotate.hpp>
#include <cmath>

#include "linear.hpp"

namespace rag {
namespace {

/// Tokens that one task of an elementwise step takes.
constexpr ba::index_t token_grain = 64;

}  // namespace

// A GGUF file of architecture "llama" has the rows of its query and key projections permuted so
// that RoPE turns neighbouring values (2 i, 2 i + 1).
transformer::transformer(const llama_weights& weights, const ba::eigen_executor& workers)
    : weights_(weights),
      workers_(workers),
      rope_({.head_dim = weights.shape.head_dim,
             .pairing = ba::rope_pairing::interleaved,
             .theta = weights.shape.rope_theta}) {}

matrix transformer::run(std::span<const token> tokens,
                        std::span<const double> positions,
                        const attend_function& attend) {
  matrix states(static_cast<ba::index_t>(tokens.size()), shape().width);
  for (ba::index_t i = 0; i < states.rows(); ++i) {
    states.row(i) = weights_.embedding.row(tokens[static_cast<std::size_t>(i)]);
  }
  for (ba::index_t index = 0; index < shape().layers; ++index) {
    const layer_weights& layer = weights_.layers[static_cast<std::size_t>(index)];
    attention_part(layer, index, positions, attend, states);
    feed_forward_part(layer, states);
  }
  return states;
}

void transformer::attention_part(const layer_weights& layer,
                                 ba::index_t index,
                                 std::span<const double> positions,
                                 const attend_function& attend,
                                 matrix& states) {
  const llama_shape& s = shape();
  matrix qkv(states.rows(), s.qkv_width());
  linear<store::assign>(workers_, normalized(states, layer.attention_norm), layer.qkv, qkv);

  const auto heads = [&](ba::index_t first, ba::index_t count) {
    return ba::heads_view<float>{qkv.data() + first * s.head_dim,
                                 states.rows(),
                                 count,
                                 s.head_dim,
                                 s.qkv_width(),
                                 s.head_dim};
  };
  // Queries and keys are neighbours: one view rotates both.
  const ba::heads_view<float> rotated = heads(0, s.heads + s.kv_heads);
  for_runs(workers_, states.rows(), token_grain, [&](const ba::index_range& run) {
    ba::rotate(rope_, ba::token_slice(rotated, run.begin, run.size()),
               positions.subspan(static_cast<std::size_t>(run.begin),
                                 static_cast<std::size_t>(run.size())));
  });

  matrix attended(states.rows(), s.heads * s.head_dim);
  attend(index, {.q = heads(0, s.heads),
                 .k = heads(s.heads, s.kv_heads),
                 .v = heads(s.heads + s.kv_heads, s.kv_heads),
                 .o = ba::token_major(attended.data(), attended.rows(), s.heads, s.head_dim)});
  linear<store::add>(workers_, attended, layer.attention_output, states);
}

void transformer::feed_forward_part(const layer_weights& layer, matrix& states) {
  const ba::index_t width = shape().ffn_width;
  matrix gate_up(states.rows(), 2 * width);
  linear<store::assign>(workers_, normalized(states, layer.ffn_norm), layer.gate_up, gate_up);
  // SwiGLU: silu(gate) * up takes the place of gate.
  for_runs(workers_, states.rows(), token_grain, [&](const ba::index_range& run) {
    auto gate = gate_up.block(run.begin, 0, run.size(), width).array();
    const auto up = gate_up.block(run.begin, width, run.size(), width).array();
    gate = gate / (1 + (-gate).exp()) * up;
  });
  linear<store::add>(workers_, gate_up.leftCols(width), layer.down, states);
}

matrix transformer::normalized(const matrix& states, const row_vector& weight) {
  matrix result(states.rows(), states.cols());
  for_runs(workers_, states.rows(), token_grain, [&](const ba::index_range& run) {
    for (ba::index_t i = run.begin; i < run.end; ++i) {
      const auto row = states.row(i);
      const double mean_square =
          static_cast<double>(row.squaredNorm()) / static_cast<double>(row.size());
      const auto factor = static_cast<float>(1 / std::sqrt(mean_square + shape().norm_epsilon));
      result.row(i) = factor * row.cwiseProduct(weight);
    }
  });
  return result;
}

std::vector<float> transformer::logits(const row_vector& state) {
  std::vector<float> scores(static_cast<std::size_t>(shape().vocabulary));
  linear<store::assign>(workers_, normalized(state, weights_.output_norm), weights_.embedding,
                        Eigen::Map<matrix>(scores.data(), 1, shape().vocabulary));
  return scores;
}

}  // namespace rag

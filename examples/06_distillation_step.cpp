// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// One training step: a block-attention student learns from a frozen full-attention teacher. To keep
// it short, the "model" is one attention layer whose parameters are q, k and v themselves, and
// whose output rows are the logits of a vocabulary of heads * head_dim tokens.

#include <blockattn/blockattn.hpp>
#include <cmath>
#include <cstdio>
#include <vector>

namespace ba = blockattn;

constexpr ba::index_t tokens = 24, heads = 4, head_dim = 16, vocabulary = heads * head_dim;
using values = std::vector<float>;

values wave(float seed) {
  values result(tokens * vocabulary);
  for (std::size_t i = 0; i < result.size(); ++i)
    result[i] = 2 * std::sin(seed * static_cast<float>(i * i % 1009));
  return result;
}

auto attention(auto& tensor) { return ba::token_major(tensor.data(), tokens, heads, head_dim); }
auto logits(auto& tensor) { return ba::dense_logits(tensor.data(), tokens, vocabulary); }

int main() {
  values q = wave(1), k = wave(2), v = wave(3);

  // The teacher sees every earlier token; it is run once and stays as it is.
  values teacher(q.size());
  const auto shape = ba::cpu::tile_shape_for<float>(head_dim);
  const auto full = ba::make_tile_plan(ba::causal_mask(tokens), shape);
  ba::cpu::forward(
      {.q = attention(q), .k = attention(k), .v = attention(v), .o = attention(teacher)}, full);

  // The student starts from the same parameters under a block mask. Backward needs tiles both ways.
  const auto layout = ba::block_layout::from_sequence({.context = {10, 8}, .final_block = 6});
  const auto plan =
      ba::make_tile_plan(ba::block_attention_mask(layout), shape, {.transposed = true});
  values o(q.size()), lse(tokens * heads), d_o(q.size());
  const auto loss_and_gradient = [&] {
    ba::cpu::forward({.q = attention(q),
                      .k = attention(k),
                      .v = attention(v),
                      .o = attention(o),
                      .lse = ba::token_major_lse(lse.data(), tokens, heads)},
                     plan);
    return ba::distillation_loss(
        {.teacher = logits(teacher), .student = logits(o), .d_student = logits(d_o)},
        {.divergence = ba::divergence::forward_kl, .temperature = 2});
  };

  const double before = loss_and_gradient();
  values d_q(q.size()), d_k(q.size()), d_v(q.size());
  ba::cpu::backward({.q = attention(q),
                     .k = attention(k),
                     .v = attention(v),
                     .o = attention(o),
                     .lse = ba::token_major_lse(lse.data(), tokens, heads),
                     .d_o = attention(d_o),
                     .d_q = attention(d_q),
                     .d_k = attention(d_k),
                     .d_v = attention(d_v)},
                    plan);
  const auto descend = [](values& parameter, const values& gradient) {
    constexpr float rate = 60;
    for (std::size_t i = 0; i < parameter.size(); ++i) parameter[i] -= rate * gradient[i];
  };
  descend(q, d_q);
  descend(k, d_k);
  descend(v, d_v);
  const double after = loss_and_gradient();
  std::printf("loss before the step: %.3f\nloss after the step:  %.3f\n", before, after);
}

// Output:
// loss before the step: 0.199
// loss after the step:  0.162

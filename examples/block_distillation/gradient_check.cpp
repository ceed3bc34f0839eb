// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "gradient_check.hpp"

#include <blockattn/distill/distillation_loss.hpp>
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <cmath>
#include <cstdio>

#include "task.hpp"
#include "transformer.hpp"

namespace distillation {

bool check_gradients() {
  Eigen::ThreadPool pool(1);
  const ba::eigen_executor workers(pool);
  const batch samples =
      draw_batch({.fewest_blocks = 2, .most_blocks = 3, .sentences_per_block = 2}, 40, 1);
  const model_shape shape = {.vocabulary = vocabulary_size(),
                             .sinks = 2,
                             .layers = 2,
                             .width = 16,
                             .heads = 2,
                             .kv_heads = 1,
                             .head_dim = 8,
                             .rotary_dim = 4,
                             .ffn_width = 16};
  const ba::block_layout layout =
      ba::with_sink_tokens(samples.layout, {.tokens_per_block = shape.sinks});
  const token_axis<double> axis(layout, ba::block_attention_mask(layout), shape);
  transformer<double> model(shape, workers);
  parameter_vector<double> weights = initial_parameters<double>(shape, 2);

  random_source random(3);
  matrix<double> teacher(std::ssize(samples.ids), shape.vocabulary);
  for (double& logit : teacher.reshaped()) logit = random.normal();
  matrix<double> d_logits(teacher.rows(), teacher.cols());
  const auto loss = [&] {
    const matrix<double>& logits = model.forward(weights, axis, samples.ids);
    return ba::distillation_loss<double>(
        {.teacher = ba::dense_logits<const double>(teacher.data(), teacher.rows(), teacher.cols()),
         .student = ba::dense_logits(logits.data(), logits.rows(), logits.cols()),
         .d_student = ba::dense_logits(d_logits.data(), d_logits.rows(), d_logits.cols())},
        {}, workers);
  };
  loss();
  parameter_vector<double> gradient(weights.size());
  model.backward(weights, axis, samples.ids, d_logits, gradient);

  constexpr double step = 1e-5;
  double largest = 0;
  for (const double value : gradient) largest = std::max(largest, std::abs(value));
  double error = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double weight = weights[i];
    weights[i] = weight + step;
    const double above = loss();
    weights[i] = weight - step;
    const double below = loss();
    weights[i] = weight;
    const double difference = (above - below) / (2 * step);
    // Written so that NaN counts as an error.
    const double relative = std::abs(difference - gradient[i]) / largest;
    if (!(relative <= error)) error = relative;
  }
  std::printf(
      "gradient of %zu parameters: largest difference from central differences %.1e of "
      "the largest entry\n",
      weights.size(), error);
  return error < 1e-6;
}

}  // namespace distillation

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "evaluation.hpp"

#include <blockattn/distill/label_log_probabilities.hpp>
#include <cmath>

namespace distillation {
namespace {

constexpr std::uint64_t held_out_purpose = 1000;

/// Counts of one kind of answers.
struct tally {
  double answers = 0;
  double right = 0;
  double cross_entropy = 0;
};

}  // namespace

held_out_data::held_out_data(const training_options& options, ba::index_t batches) {
  for (ba::index_t i = 0; i < batches; ++i) {
    batches_.push_back(draw_batch(options.documents, options.tokens_per_step,
                                  random_source::seed_of(held_out_purpose, i)));
  }
}

score held_out_data::measure(transformer<float>& model,
                             std::span<const float> weights,
                             attention_mode mode,
                             ba::index_t batches,
                             const ba::eigen_executor& workers) const {
  tally relative;
  tally direct;
  for (const batch& samples : std::span(batches_).first(static_cast<std::size_t>(batches))) {
    const token_axis<float> axis =
        mode == attention_mode::full
            ? full_attention_axis(samples, model.shape())
            : block_attention_axis(samples, model.shape(),
                                   mode == attention_mode::block_with_sinks);
    const matrix<float>& logits = model.forward(weights, axis, samples.ids);
    std::vector<float> log_probabilities(samples.ids.size());
    ba::label_log_probabilities<float>(
        {.logits = ba::dense_logits(logits.data(), logits.rows(), logits.cols()),
         .labels = samples.next,
         .log_probabilities = log_probabilities},
        workers);
    for (std::size_t i = 0; i < samples.ids.size(); ++i) {
      if (!is_answer(samples.kinds[i])) continue;
      tally& counts = samples.kinds[i] == target_kind::relative ? relative : direct;
      ba::index_t likeliest = 0;
      logits.row(static_cast<ba::index_t>(i)).maxCoeff(&likeliest);
      counts.answers += 1;
      counts.right += likeliest == samples.next[i] ? 1 : 0;
      counts.cross_entropy -= static_cast<double>(log_probabilities[i]);
    }
  }
  return {.relative_accuracy = relative.right / relative.answers,
          .direct_accuracy = direct.right / direct.answers,
          .relative_perplexity = std::exp(relative.cross_entropy / relative.answers)};
}

}  // namespace distillation

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "training.hpp"

namespace distillation {

/// How a model answers the held-out questions.
struct score {
  double relative_accuracy = 0;    ///< share of right answers about facts that cross a block border
  double direct_accuracy = 0;      ///< the same about facts that stand in one sentence
  double relative_perplexity = 0;  ///< exp of the mean cross-entropy of the relative answers
};

enum class attention_mode { full, block, block_with_sinks };

/// Documents that no training step sees, the same for all models.
class held_out_data {
 public:
  /// \param batches  of options.tokens_per_step tokens each
  held_out_data(const training_options& options, ba::index_t batches);

  /// The score over the first `batches` of them, at most all.
  score measure(transformer<float>& model,
                std::span<const float> weights,
                attention_mode mode,
                ba::index_t batches,
                const ba::eigen_executor& workers) const;

  ba::index_t batches() const { return std::ssize(batches_); }

 private:
  std::vector<batch> batches_;
};

}  // namespace distillation

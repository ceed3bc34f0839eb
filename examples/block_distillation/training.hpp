// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <vector>

#include "optimizer.hpp"
#include "task.hpp"
#include "transformer.hpp"

namespace distillation {

/// What is trained, and how.
enum class objective {
  language_modelling,  ///< the teacher: cross-entropy under full attention
  block_fine_tuning,   ///< cross-entropy of the answers, every sample in full and in block mode
                       ///< (Block-Attention, arXiv 2409.15355)
  block_distillation,  ///< a frozen full-attention teacher (arXiv 2605.15913)
};

struct recipe {
  std::string name;
  distillation::objective objective = objective::language_modelling;
  bool sinks = false;      ///< sink tokens at the start of every block
  bool dropout = false;    ///< block dropout
  bool weighting = false;  ///< token weights from the disagreement of teacher and student
};

/// The teacher, then every student.
std::vector<recipe> all_recipes();

/// Sizes of a training run. Numbers were tuned for two cores; see README.md.
struct training_options {
  model_shape shape;
  document_size documents;
  ba::index_t tokens_per_step = 2500;
  ba::index_t teacher_steps = 1200;
  ba::index_t student_steps = 320;
  optimizer_options teacher_optimizer = {.learning_rate = 5e-3};
  optimizer_options student_optimizer = {.learning_rate = 6e-4};
  /// Share of the teacher's steps in which documents grow from one block to their full size.
  /// Finding a fact among two is learned in 200 steps; among 24, not in 2,000 (measured).
  double growing = 0.6;
  double text_weight = 0.1;  ///< of the teacher's loss on words that mostly cannot be known
  /// Share of the teacher's steps in which questions do not see the block that names the
  /// country: what it says must then be carried by the facts, and that is what block attention
  /// takes away.
  double hidden_country = 0.9;
  double keep_probability = 0.7;  ///< of block dropout

  ba::index_t steps(const recipe& r) const {
    return r.objective == objective::language_modelling ? teacher_steps : student_steps;
  }
};

/// The state of one run: all that a checkpoint must hold.
struct trained_model {
  explicit trained_model(parameter_vector<float> initial)
      : weights(std::move(initial)), optimizer(weights.size()) {}

  parameter_vector<float> weights;
  adamw optimizer;
  ba::index_t step = 0;
};

/// Runs the training steps of every recipe. Batches follow from the seed and the number of the step
/// alone; all students of a seed see the same ones.
class trainer {
 public:
  trainer(const training_options& options, const ba::eigen_executor& workers)
      : options_(options),
        workers_(workers),
        model_(options.shape, workers),
        teacher_(options.shape, workers) {}

  /// One step; returns the loss.
  /// \param teacher  weights of the seed's teacher; read by block distillation only
  double step(const recipe& recipe,
              std::uint64_t seed,
              std::span<const float> teacher,
              trained_model& model);

  transformer<float>& model() { return model_; }

 private:
  double language_modelling(std::uint64_t seed, const trained_model& model);
  double block_fine_tuning(std::uint64_t seed, const trained_model& model);
  double block_distillation(const recipe& recipe,
                            std::uint64_t seed,
                            std::span<const float> teacher,
                            const trained_model& model);
  /// Mean cross-entropy of the tokens that count, and its gradient.
  double cross_entropy(const batch& samples,
                       const token_axis<float>& axis,
                       const std::vector<float>& token_weights,
                       const trained_model& model,
                       parameter_vector<float>& gradient);

  training_options options_;
  const ba::eigen_executor& workers_;
  transformer<float> model_;
  transformer<float> teacher_;
  matrix<float> d_logits_;
  parameter_vector<float> gradient_, second_gradient_;
};

/// The axis of a batch under full attention: every sequence causal.
token_axis<float> full_attention_axis(const batch& samples, const model_shape& shape);

/// The axis of a batch under block attention, with or without sink tokens.
token_axis<float> block_attention_axis(const batch& samples, const model_shape& shape, bool sinks);

}  // namespace distillation

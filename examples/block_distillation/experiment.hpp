// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evaluation.hpp"

namespace distillation {

/// A point of a learning curve: held-out accuracy of relative answers after so many steps.
struct curve_point {
  ba::index_t step = 0;
  double relative_accuracy = 0;
};

/// What one model came to.
struct run_result {
  score held_out;
  double seconds = 0;  ///< of training
  std::vector<curve_point> curve;
};

/// All models of one seed.
struct seed_results {
  score untrained;               ///< the teacher's weights under block attention
  std::vector<run_result> runs;  ///< one for each recipe that has finished, the teacher first
};

struct experiment_options {
  training_options training;
  ba::index_t seeds = 3;
  ba::index_t held_out_batches = 20;  ///< for the table
  ba::index_t curve_batches = 4;      ///< of them, for a point of a curve
  ba::index_t curve_points = 32;      ///< of each student
};

/// All runs, one after the other: for each seed the teacher, then its students. Everything that has
/// happened so far is in the public members, for the report and the checkpoint.
class experiment {
 public:
  experiment(const experiment_options& options, const ba::eigen_executor& workers);

  bool finished() const {
    return std::ssize(seeds) == options_.seeds && seeds.back().runs.size() == recipes_.size();
  }

  /// One training step, and what is due with it: the start or end of a run, a point of a curve.
  void advance();

  /// The recipe and the seed (from 0) that the next step belongs to, unless all is finished.
  const recipe& current() const { return recipes_[current_index()]; }
  ba::index_t current_seed() const {
    return current_index() == 0 && !running ? std::ssize(seeds) : std::ssize(seeds) - 1;
  }

  const experiment_options& options() const { return options_; }
  const std::vector<recipe>& recipes() const { return recipes_; }

  /// Work in units of one forward pass: of a step of `r`; of all runs; of what has been done.
  static double step_work(const recipe& r);
  double total_work() const;
  double done_work() const;

  std::vector<seed_results> seeds;  ///< the last one may be unfinished
  parameter_vector<float> teacher;  ///< weights of the current seed's teacher, once it is trained
  std::optional<trained_model> running;  ///< the model in training, between its first and last step
  run_result unfinished;                 ///< of `running`

 private:
  std::size_t current_index() const;
  void start_run();
  void add_curve_point();
  void finish_run();

  experiment_options options_;
  std::vector<recipe> recipes_ = all_recipes();
  const ba::eigen_executor& workers_;
  trainer trainer_;
  held_out_data held_out_;
};

/// A number that two runs share only if all weights and results agree to the last bit.
std::uint64_t checksum(const experiment& run);

}  // namespace distillation

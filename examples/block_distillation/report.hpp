// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <string>

#include "experiment.hpp"

namespace distillation {

/// Mean and sample standard deviation over the seeds.
struct spread {
  double mean = 0;
  double deviation = 0;
};

spread spread_of(const std::vector<double>& values);

/// The share of the gap between the untrained block attention and the teacher that a model has
/// closed, in accuracy of relative answers; NaN when the gap is below 5 points.
double closed_share(const seed_results& seed, const run_result& run);

/// The first point of the curve at which 90 % of that gap are closed; NaN when none is.
inline constexpr double not_reached = std::numeric_limits<double>::quiet_NaN();
double steps_to_close(const seed_results& seed, const run_result& run);

/// Prints the table of a finished experiment.
void print_table(const experiment& run);

/// Draws the learning curves of a finished experiment as an SVG file: mean over the seeds, with the
/// band from the lowest to the highest. Throws `input_error` when the file cannot be written.
void draw_curves(const experiment& run, const std::string& path);

}  // namespace distillation

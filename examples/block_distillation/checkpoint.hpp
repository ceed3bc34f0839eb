// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "experiment.hpp"

namespace distillation {

/// Writes everything that the rest of an experiment depends on: results, weights of the teacher,
/// weights and optimizer state of the model in training, its step. Random numbers need no state:
/// they follow from the seed and the step. Writes beside `path` first, so that a checkpoint is
/// whole or not there. Throws `input_error` when the file cannot be written.
void save_checkpoint(const std::string& path, experiment& run);

/// Puts an experiment where `save_checkpoint` left it. Throws `input_error` when the file cannot be
/// read, is cut, or belongs to a run with other options.
void load_checkpoint(const std::string& path, experiment& run);

}  // namespace distillation

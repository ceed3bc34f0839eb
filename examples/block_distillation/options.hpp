// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

namespace distillation {

/// What the command line asks for.
struct options {
  bool quick = false;
  bool resume = false;
  bool check_gradients = false;
  bool help = false;
  int threads = 1;
  int seeds = 3;
  long stop_after_steps = -1;  ///< training steps of this call, or -1
  std::string checkpoint = "block_distillation.checkpoint";
  std::string curves = "block_distillation.svg";
};

extern const char* const usage;

/// Reads the arguments behind the program's name. Throws `input_error`.
options parse_options(std::span<char* const> arguments);

}  // namespace distillation

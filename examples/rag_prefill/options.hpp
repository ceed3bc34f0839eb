// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <vector>

namespace rag {

/// What the command line asks for.
struct options {
  std::string model;                   ///< path of the GGUF file
  std::vector<std::string> documents;  ///< paths of the text files
  std::string question;
  std::vector<std::size_t> order;  ///< of the documents in the last run, from 0
  int generate = 48;               ///< most tokens of each answer
  int threads = 1;
  bool help = false;
};

extern const char* const usage;

/// Reads the arguments behind the program's name. What they leave open takes its default: the model
/// and documents that the build names, a question that one of those documents answers, the
/// documents in reverse order, all processors. Throws `input_error`.
options parse_options(std::span<char* const> arguments);

}  // namespace rag

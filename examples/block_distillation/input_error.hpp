// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sstream>
#include <stdexcept>

namespace distillation {

/// Something that the caller of the program can mend: an unknown option, a checkpoint of another
/// run. `what()` is one sentence; main prints it and exits with 1.
class input_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// `require(threads > 0, "--threads is ", threads)`.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw input_error(sentence.str());
}

}  // namespace distillation

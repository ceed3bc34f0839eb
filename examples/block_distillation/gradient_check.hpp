// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

namespace distillation {

/// Compares the hand-written gradient of a small fp64 transformer under block attention with sink
/// tokens, through the distillation loss, with central differences in every parameter. Prints the
/// largest relative error and returns true when it is below 1e-6.
bool check_gradients();

}  // namespace distillation

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace blockattn_test {

/// Checks a gradient against central differences of `loss()`, a function of `values`, at `count`
/// random places: within 1e-6 of the largest magnitude among the gradient's elements or of 1. With
/// a step of 1e-5 the differences themselves are good to about 1e-9.
template <class Loss>
void check_differences(const std::string& name,
                       random_source& random,
                       std::vector<double>& values,
                       const std::vector<double>& gradient,
                       int count,
                       const Loss& loss) {
  REQUIRE(values.size() == gradient.size());
  if (values.empty()) return;
  double size = 1;
  for (const double g : gradient) size = std::max(size, std::abs(g));
  constexpr double step = 1e-5;
  for (int n = 0; n < count; ++n) {
    const auto at = static_cast<std::size_t>(random.integer(0, std::ssize(values) - 1));
    const double value = values[at];
    values[at] = value + step;
    const double above = loss();
    values[at] = value - step;
    const double below = loss();
    values[at] = value;
    const double difference = (above - below) / (2 * step);
    INFO(name << "[" << at << "]: the loss changes by " << difference << ", the gradient says "
              << gradient[at]);
    CHECK(std::abs(difference - gradient[at]) <= 1e-6 * size);
  }
}

}  // namespace blockattn_test

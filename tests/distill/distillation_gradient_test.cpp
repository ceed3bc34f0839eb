// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/distillation_loss.hpp>

#include "distill/distillation_case.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

namespace {

using call = distillation_case<double>;

/// Every entry of the gradient against central differences of the loss. With step h the differences
/// are off by h^2 / 6 times a third derivative, of order 1 / temperature^3 here, and by the loss's
/// last digit over h: both are below 1e-9.
template <class Loss>
void check_finite_differences(call& test, const Loss& loss) {
  constexpr double step = 1e-5;
  loss(test.arguments());
  auto without = test.arguments();
  without.d_student = {};
  for (index_t token = 0; token < test.shape.tokens; ++token) {
    if (!test.counts(token)) continue;
    for (index_t v = 0; v < test.shape.vocabulary; ++v) {
      double& logit = test.student.view().row(token, 0)[v];
      const double at = logit;
      logit = at + step;
      const double above = loss(without);
      logit = at - step;
      const double below = loss(without);
      logit = at;
      const double slope = test.options.gradient_scale * (above - below) / (2 * step);
      CAPTURE(token, v, slope, test.gradient_at(token, v));
      REQUIRE(std::abs(slope - test.gradient_at(token, v)) <=
              1e-6 * std::max(1e-2, std::abs(slope)) * std::abs(test.options.gradient_scale));
    }
  }
}

template <class Loss>
void check_all(std::uint64_t default_seed, const Loss& loss) {
  const std::uint64_t seed = test_seed(default_seed);
  random_source random(seed);
  for (const distillation_options& options : all_distillation_options()) {
    for (const distillation_shape& shape :
         {distillation_shape{.tokens = 4, .vocabulary = 11, .magnitude = 1.5},
          distillation_shape{.tokens = 2, .vocabulary = 37, .magnitude = 1, .plain = true},
          distillation_shape{.tokens = 3, .vocabulary = 23, .k = 5, .magnitude = 1.5},
          distillation_shape{.tokens = 3, .vocabulary = 9, .k = 9, .magnitude = 1}}) {
      CAPTURE(seed, shape.vocabulary, shape.k, static_cast<int>(options.divergence),
              options.temperature, options.label_weight);
      call test(random, shape, options);
      check_finite_differences(test, [&](const distillation_arguments<double>& arguments) {
        return loss(arguments, options);
      });
    }
  }
}

}  // namespace

TEST_CASE("the gradient is that of the loss", "[distillation_loss]") {
  check_all(320, [](const auto& arguments, const auto& options) {
    return distillation_loss(arguments, options);
  });
}

TEST_CASE("the reference's gradient is that of its loss", "[distillation_loss]") {
  check_all(321, [](const auto& arguments, const auto& options) {
    return reference::distillation_loss(arguments, options);
  });
}

TEST_CASE("a step down the gradient lowers the loss", "[distillation_loss]") {
  random_source random(test_seed(322));
  for (const distillation_options& options : all_distillation_options()) {
    call test(random, {.tokens = 3, .vocabulary = 500, .plain = true}, options);
    const double before = distillation_loss(test.arguments(), options);
    const double step = options.gradient_scale > 0 ? 0.1 : -0.1 / 1024;
    for (index_t token = 0; token < 3; ++token) {
      for (index_t v = 0; v < 500; ++v)
        test.student.view().row(token, 0)[v] -= step * test.gradient_at(token, v);
    }
    CHECK(distillation_loss(test.arguments(), options) < before);
  }
}

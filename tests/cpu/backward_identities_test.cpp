// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "support/backward_identities.hpp"
#include "cpu/cpu_backend.hpp"

using namespace blockattn_test;

// SEMANTICS.md, section 5, gradient. Each identity takes the random ragged layouts of several
// seeds.

TEST_CASE("cpu::backward is the change of the loss in fp64") {
  for_random_seeds(
      1100, 60, [](random_source& random) { check_backward_differences(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE(
    "a block of one token has no gradient in its query", "", float, double, bfloat16) {
  for_random_seeds(1150, 6, [](random_source& random) {
    check_gradient_unit_blocks<TestType>(cpu_backend{}, random);
  });
}

TEMPLATE_TEST_CASE("shares of the gradient add up to the whole", "", float, double) {
  for_random_seeds(1200, 20, [](random_source& random) {
    check_gradient_partition<TestType>(cpu_backend{}, random);
  });
}

TEMPLATE_TEST_CASE("hidden pairs carry no gradient", "", float, double, bfloat16) {
  for_random_seeds(1300, 12, [](random_source& random) {
    check_gradient_independence<TestType>(cpu_backend{}, random);
  });
}

TEMPLATE_TEST_CASE("grouped heads sum the gradients of repeated heads", "", float, double) {
  for_random_seeds(1400, 15, [](random_source& random) {
    check_gradient_repeated_heads<TestType>(cpu_backend{}, random);
  });
}

TEMPLATE_TEST_CASE("a common shift of keys or values shows in the sums", "", float, double) {
  for_random_seeds(1500, 20, [](random_source& random) {
    check_gradient_sums<TestType>(cpu_backend{}, random);
  });
}

TEMPLATE_TEST_CASE("cached blocks get the gradients of the masked call", "", float, double) {
  for_random_seeds(1600, 12, [](random_source& random) {
    check_cached_gradient<TestType>(cpu_backend{}, random);
  });
}

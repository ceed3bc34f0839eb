// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "support/forward_identities.hpp"
#include "cuda/cuda_backend.hpp"

using namespace blockattn_test;

// SEMANTICS.md, section 5: the identities that hold to the bit, or exactly, in 16-bit types.

TEMPLATE_TEST_CASE("cuda: causal in other words has the bits of causal", "", float16, bfloat16) {
  if (skips_without_device()) return;
  for_random_seeds(
      100, 6, [](random_source& random) { check_causal_limits<TestType>(cuda_backend{}, random); });
}

TEMPLATE_TEST_CASE("cuda: a block of one token returns its value", "", float16, bfloat16) {
  if (skips_without_device()) return;
  for_random_seeds(
      200, 6, [](random_source& random) { check_unit_blocks<TestType>(cuda_backend{}, random); });
}

TEMPLATE_TEST_CASE("cuda: a context block knows no other", "", float16, bfloat16) {
  if (skips_without_device()) return;
  for_random_seeds(
      400, 12, [](random_source& random) { check_independence<TestType>(cuda_backend{}, random); });
}

TEMPLATE_TEST_CASE("cuda: grouped heads are repeated heads", "", float16, bfloat16) {
  if (skips_without_device()) return;
  for_random_seeds(1200, 12, [](random_source& random) {
    check_repeated_heads<TestType>(cuda_backend{}, random);
  });
}

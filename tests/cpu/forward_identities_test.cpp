// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_backend.hpp"
#include "support/model_identities.hpp"
#include "support/row_identities.hpp"
#include "support/sink_identities.hpp"

using namespace blockattn_test;

// SEMANTICS.md, section 5. Each identity takes the random ragged layouts of several seeds.

TEMPLATE_TEST_CASE("causal in other words has the bits of causal", "", float, double, bfloat16) {
  for_random_seeds(
      100, 6, [](random_source& random) { check_causal_limits<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("a block of one token returns its value", "", float, double, bfloat16) {
  for_random_seeds(
      200, 6, [](random_source& random) { check_unit_blocks<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("states over parts of the keys merge into the whole", "", float, double) {
  for_random_seeds(300, 30,
                   [](random_source& random) { check_partition<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("a context block knows no other", "", float, double, bfloat16) {
  for_random_seeds(
      400, 12, [](random_source& random) { check_independence<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("a context block knows no other through layers", "", float, double) {
  for_random_seeds(500, 4, [](random_source& random) {
    check_layered_independence<TestType>(cpu_backend{}, random);
  });
}

TEMPLATE_TEST_CASE("the order of context blocks does not matter without positions",
                   "",
                   float,
                   double) {
  for_random_seeds(
      600, 12, [](random_source& random) { check_permutation<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("a common shift of positions changes nothing", "", float, double) {
  for_random_seeds(
      700, 12, [](random_source& random) { check_common_shift<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("cached blocks and a final block are one masked prefill", "", float, double) {
  for_random_seeds(
      800, 5, [](random_source& random) { check_cached_prefill<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("sink logits are keys without a value", "", float, double) {
  for_random_seeds(
      900, 15, [](random_source& random) { check_sink_logits<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("sink tokens are tokens of their block", "", float, double) {
  for_random_seeds(
      1000, 12, [](random_source& random) { check_sink_tokens<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("noised and clean streams", "", float, double) {
  CHECK(picture(dual_stream_mask(4, 2)) ==
        "xx......\nxx......\n..xxxx..\n..xxxx..\n....xx..\n....xx..\n....xxxx\n....xxxx\n");
  for_random_seeds(
      1100, 8, [](random_source& random) { check_dual_stream<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("grouped heads are repeated heads", "", float, double, bfloat16) {
  for_random_seeds(1200, 12, [](random_source& random) {
    check_repeated_heads<TestType>(cpu_backend{}, random);
  });
}

TEMPLATE_TEST_CASE("packed sequences are sequences alone", "", float, double) {
  for_random_seeds(1300, 12,
                   [](random_source& random) { check_packing<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("a final block is its tokens one by one", "", float, double) {
  for_random_seeds(1400, 8,
                   [](random_source& random) { check_decoding<TestType>(cpu_backend{}, random); });
}

TEMPLATE_TEST_CASE("recomputed rows are the rows of the whole call", "", float, double) {
  for_random_seeds(1500, 12, [](random_source& random) {
    check_gathered_queries<TestType>(cpu_backend{}, random);
  });
}

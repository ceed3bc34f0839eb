// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/attention_mask.hpp>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

TEST_CASE("a default mask has no tokens and no slices") {
  const attention_mask mask;
  CHECK(mask.query_tokens() == 0);
  CHECK(mask.key_tokens() == 0);
  CHECK(mask.slices().empty());
  CHECK(visible_pairs(mask) == 0);
  CHECK(transposed(mask).slices().empty());
  CHECK_FALSE(mask.visible(0, 0));
}

TEST_CASE("slices are trimmed, sorted and dropped when empty") {
  const auto mask = attention_mask::from_disjoint_slices(
      6, 6,
      {{.queries = {3, 6}, .keys = {3, 6}, .upper = 0},
       {.queries = {0, 3}, .keys = {3, 6}, .upper = 0},  // above the diagonal: empty
       {.queries = {2, 2}, .keys = {0, 6}},
       {.queries = {0, 3}, .keys = {0, 6}, .upper = 0},
       {.queries = {3, 6}, .keys = {0, 3}, .upper = -4}});
  CHECK(mask.slices() == std::vector<slice>{{.queries = {0, 3}, .keys = {0, 3}, .upper = 0},
                                            {.queries = {3, 6}, .keys = {3, 6}, .upper = 0},
                                            {.queries = {4, 6}, .keys = {0, 2}, .upper = -4}});
}

TEST_CASE("random masks obey the laws") {
  const auto seed = test_seed(202);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 300; ++round) {
    CAPTURE(round);
    const attention_mask mask = random_mask(random, random.integer(0, 12), random.integer(0, 12));
    check_laws(mask);
    const std::vector<std::uint8_t> dense = to_dense(mask);
    for (index_t query = 0; query < mask.query_tokens(); ++query) {
      for (index_t key = 0; key < mask.key_tokens(); ++key) {
        REQUIRE(mask.visible(query, key) ==
                (dense[static_cast<std::size_t>(query * mask.key_tokens() + key)] != 0));
      }
    }
  }
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/causal_mask.hpp>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

TEST_CASE("full and causal masks of every small shape") {
  for (index_t queries = 0; queries <= 6; ++queries) {
    for (index_t keys = 0; keys <= 6; ++keys) {
      CAPTURE(queries, keys);
      check_mask(full_mask(queries, keys), queries, keys, [](index_t, index_t) { return true; });
      check_mask(causal_mask(queries, keys), queries, keys,
                 [&](index_t i, index_t j) { return j <= i + keys - queries; });
    }
    check_mask(causal_mask(queries), queries, queries, [](index_t i, index_t j) { return j <= i; });
  }
}

TEST_CASE("causal aligns at the bottom right") {
  CHECK(picture(causal_mask(2, 4)) == "xxx.\nxxxx\n");
  CHECK(picture(causal_mask(3, 1)) == ".\n.\nx\n");
}

TEST_CASE("pair counts of long causal masks") {
  CHECK(visible_pairs(causal_mask(32768)) == 536'887'296);
  CHECK(visible_pairs(causal_mask(33280)) == 553'795'840);
  CHECK(visible_pairs(causal_mask(1, 32769)) == 32'769);
  CHECK(visible_pairs(full_mask(max_axis_tokens, max_axis_tokens)) == index_t{1} << 62);
}

TEST_CASE("causal and full masks refuse impossible token counts") {
  CHECK_THROWS_WITH(causal_mask(-1), contains("causal_mask: query_tokens is -1"));
  CHECK_THROWS_WITH(causal_mask(1, max_axis_tokens + 1), contains("key_tokens is 2147483649"));
  CHECK_THROWS_WITH(full_mask(2, -4), contains("full_mask: key_tokens is -4"));
  CHECK_THROWS_WITH(full_mask(-2, 4), contains("query_tokens is -2"));
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/gather_mask.hpp>
#include <blockattn/mask/window_mask.hpp>

#include <array>
#include <numeric>

#include "layout/layout_cases.hpp"
#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

using indices = std::vector<index_t>;

indices all_of(index_t tokens) {
  indices index(static_cast<std::size_t>(tokens));
  std::iota(index.begin(), index.end(), index_t{0});
  return index;
}

indices picked(random_source& random, index_t tokens) {
  // Runs as well as single tokens: the choice changes now and then.
  const double change = random.real(0, 1);
  indices index;
  bool keep = random.chance(0.5);
  for (index_t token = 0; token < tokens; ++token) {
    if (keep) index.push_back(token);
    if (random.chance(change)) keep = !keep;
  }
  return index;
}

void check_gathered(const attention_mask& mask, const indices& queries, const indices& keys) {
  check_mask(gather_mask(mask, queries, keys), static_cast<index_t>(queries.size()),
             static_cast<index_t>(keys.size()), [&](index_t row, index_t column) {
               return mask.visible(queries[static_cast<std::size_t>(row)],
                                   keys[static_cast<std::size_t>(column)]);
             });
}

}  // namespace

TEST_CASE("gathered queries see by token index: no bottom-right triangle over the ranks") {
  // CacheBlend's released mask would show keys 0..4 to token 1 here, and 0..5 to token 5.
  const std::array<index_t, 2> recomputed = {1, 5};
  CHECK(picture(gather_queries(causal_mask(6), recomputed)) == "xx....\nxxxxxx\n");
  CHECK(picture(causal_mask(2, 6)) == "xxxxx.\nxxxxxx\n");
}

TEST_CASE("a band over consecutive tokens stays one band with shifted limits") {
  const attention_mask window = sliding_window_mask(20, 4);
  CHECK(gather_queries(window, indices{10, 11, 12, 13}).slices() ==
        std::vector<slice>{{.queries = {0, 4}, .keys = {7, 14}, .lower = 7, .upper = 10}});
  CHECK(gather_mask(causal_mask(9), indices{4, 5, 6}, indices{2, 3, 4, 5, 6}).slices() ==
        std::vector<slice>{{.queries = {0, 3}, .keys = {0, 5}, .upper = 2}});
  CHECK(gather_queries(transposed(causal_mask(9)), indices{2, 3, 4}).slices() ==
        std::vector<slice>{{.queries = {0, 3}, .keys = {2, 9}, .lower = 2}});
}

TEST_CASE("a rectangle stays one rectangle however scattered the tokens are") {
  CHECK(gather_mask(full_mask(9, 9), indices{0, 2, 5, 8}, indices{1, 4, 7}).slices() ==
        full_mask(4, 3).slices());
  // Keys that every query of a run sees are one rectangle too.
  CHECK(gather_mask(causal_mask(9), indices{8}, indices{0, 2, 4, 6, 8}).slices() ==
        full_mask(1, 5).slices());
  // The band ends exactly at the corner pair (4, 4).
  CHECK(gather_mask(transposed(causal_mask(9)), indices{0, 2, 4}, indices{4, 6, 8}).slices() ==
        full_mask(3, 3).slices());
}

TEST_CASE("picking everything or nothing") {
  const auto mask = block_attention_mask(layout_of({3, 2, 4}));
  CHECK(gather_mask(mask, all_of(9), all_of(9)).slices() == mask.slices());
  CHECK(gather_queries(mask, all_of(9)).slices() == mask.slices());
  CHECK(gather_mask(mask, {}, all_of(9)).slices().empty());
  CHECK(gather_mask(mask, {}, all_of(9)).key_tokens() == 9);
  CHECK(gather_mask(mask, all_of(9), {}).slices().empty());
  CHECK(gather_mask(attention_mask(), {}, {}).slices().empty());
}

TEST_CASE("every choice of tokens of small masks") {
  const attention_mask masks[] = {causal_mask(5), sliding_window_mask(5, 2),
                                  block_attention_mask(layout_of({1, 2, 2}))};
  for (const attention_mask& mask : masks) {
    for (unsigned rows = 0; rows < 32; ++rows) {
      for (unsigned columns = 0; columns < 32; ++columns) {
        indices queries;
        indices keys;
        for (index_t token = 0; token < 5; ++token) {
          if (((rows >> token) & 1U) != 0) queries.push_back(token);
          if (((columns >> token) & 1U) != 0) keys.push_back(token);
        }
        CAPTURE(queries, keys);
        check_gathered(mask, queries, keys);
      }
    }
  }
}

TEST_CASE("random choices of random masks") {
  const auto seed = test_seed(209);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 400; ++round) {
    const index_t queries = random.integer(0, 16);
    const index_t keys = random.integer(0, 16);
    const attention_mask mask = random_mask(random, queries, keys);
    const indices rows = picked(random, queries);
    const indices columns = picked(random, keys);
    CAPTURE(round, rows, columns);
    check_gathered(mask, rows, columns);
    REQUIRE(picture(gather_queries(mask, rows)) == picture(gather_mask(mask, rows, all_of(keys))));
    // Gathering twice is gathering once.
    const indices again = picked(random, static_cast<index_t>(rows.size()));
    indices both;
    for (const index_t rank : again) both.push_back(rows[static_cast<std::size_t>(rank)]);
    REQUIRE(picture(gather_queries(gather_queries(mask, rows), again)) ==
            picture(gather_queries(mask, both)));
  }
}

TEST_CASE("bad index lists are refused by name") {
  const auto mask = causal_mask(4);
  CHECK_THROWS_WITH(gather_mask(mask, indices{2, 2}, indices{0}),
                    contains("gather_mask: query_index[1] is 2"));
  CHECK_THROWS_WITH(gather_mask(mask, indices{2}, indices{0, 4}),
                    contains("key_index[1] is 4") && contains("[0, 4)"));
  CHECK_THROWS_WITH(gather_queries(mask, indices{-1}),
                    contains("gather_queries: query_index[0] is -1"));
}

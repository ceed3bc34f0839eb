// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/block_slice_merger.hpp>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

TEST_CASE("neighbours in a row and rows below one another become one slice") {
  blockattn::detail::block_slice_merger merger;
  merger.begin_row({0, 2});
  merger.add({0, 2}, true);
  merger.end_row();
  merger.begin_row({2, 3});
  merger.add({0, 1}, false);
  merger.add({1, 1}, false);  // empty
  merger.add({1, 2}, false);
  merger.add({2, 3}, true);
  merger.end_row();
  const std::vector<slice> slices = merger.take();
  REQUIRE(slices.size() == 1);
  CHECK(slices[0] == slice{.queries = {0, 3}, .keys = {0, 3}, .upper = 0});
}

TEST_CASE("what a causal run ends is not joined with keys right of it") {
  blockattn::detail::block_slice_merger merger;
  merger.begin_row({0, 2});
  merger.add({0, 2}, true);
  merger.add({2, 4}, false);
  merger.end_row();
  merger.begin_row({2, 4});
  merger.add({0, 2}, false);
  merger.end_row();
  const auto mask = attention_mask::from_disjoint_slices(4, 4, merger.take());
  CHECK(picture(mask) == "x.xx\nxxxx\nxx..\nxx..\n");
  CHECK(mask.slices().size() == 3);
}

TEST_CASE("random rows hold what was added") {
  const auto seed = test_seed(231);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 200; ++round) {
    blockattn::detail::block_slice_merger merger;
    std::vector<slice> added;
    index_t query = 0;
    for (index_t row = random.integer(0, 5); row > 0; --row) {
      const index_range queries = {query, query + random.integer(1, 3)};
      query = queries.end;
      merger.begin_row(queries);
      for (index_t key = random.integer(0, 2); key < 12;) {
        const index_range keys = {key, std::min<index_t>(12, key + random.integer(0, 3))};
        const bool causal = keys == queries;
        if (!keys.empty()) {
          added.push_back({.queries = queries, .keys = keys});
          if (causal) added.back().upper = 0;
        }
        merger.add(keys, causal);
        key = keys.end + (random.chance(0.5) ? 0 : 1);
      }
      merger.end_row();
    }
    CAPTURE(round);
    const std::vector<slice> slices = merger.take();
    // In the order of masks, so that large draws need no sorting.
    CHECK(std::is_sorted(slices.begin(), slices.end(), [](const slice& a, const slice& b) {
      return std::pair(a.queries.begin, a.keys.begin) < std::pair(b.queries.begin, b.keys.begin);
    }));
    const auto mask = attention_mask::from_disjoint_slices(query, 12, slices);
    check_mask(mask, query, 12, [&](index_t i, index_t j) {
      return std::any_of(added.begin(), added.end(),
                         [&](const slice& s) { return s.contains(i, j); });
    });
    CHECK(mask.slices().size() <= added.size());
  }
}

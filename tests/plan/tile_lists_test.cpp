// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/plan/tile_lists.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

TEST_CASE("spans of an outer tile are read along their links", "[plan]") {
  // Spans 0 and 1 are those of outer tile 0; from 2 on span 2 stands between them; from 3 on span 1
  // is gone; outer tile 4 has none.
  tile_lists lists;
  lists.outer_tiles = 5;
  lists.first_span = {0, 0, 0, 0, -1};
  lists.spans = {{0, 2, 0, 0}, {7, 9, 0, 0}, {4, 5, 0, 2}};
  lists.first_link = {0, 1, 2, 4};
  lists.links = {{2, 2}, {0, -1}, {2, 1}, {3, -1}};
  lists.slice_ids = {3, 6};
  const auto begins = [&lists](index_t outer) {
    std::vector<index_t> found;
    for (const tile_span& span : lists.spans_of(outer)) found.push_back(span.inner_begin);
    return found;
  };
  CHECK(begins(0) == std::vector<index_t>{0, 7});
  CHECK(begins(1) == std::vector<index_t>{0, 7});
  CHECK(begins(2) == std::vector<index_t>{0, 4, 7});
  CHECK(begins(3) == std::vector<index_t>{0, 4});
  CHECK(begins(4).empty());
  CHECK(lists.spans_of(4).empty());
  CHECK_FALSE(lists.spans_of(3).empty());

  auto span = lists.spans_of(2).begin();
  CHECK(span++->is_full());
  CHECK_FALSE(span->is_full());
  CHECK(span->tiles() == 1);
  const auto slices = lists.slices_of(*span);
  CHECK(std::vector<std::int32_t>(slices.begin(), slices.end()) == lists.slice_ids);
  CHECK(std::distance(span, lists.spans_of(2).end()) == 2);
}

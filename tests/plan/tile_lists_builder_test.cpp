// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/plan/tile_lists_builder.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using detail::tile_lists_builder;
using detail::tiled_axis;

namespace {

/// What an outer tile shows of each inner tile: nothing, or its slices (full: none).
struct tile_content {
  bool met = false;
  std::vector<std::int32_t> slices = {};
  friend bool operator==(const tile_content&, const tile_content&) = default;
};
using row = std::vector<tile_content>;

tile_content random_content(random_source& random) {
  switch (random.integer(0, 3)) {
    case 0:
      return {};
    case 1:
      return {true};
    case 2:
      return {true, {static_cast<std::int32_t>(random.integer(0, 2))}};
  }
  return {true, {1, 3}};
}

/// Tells the builder the tiles of a region, in runs that are not always as long as they may be.
void replace(tile_lists_builder& builder,
             const index_range& region,
             const row& now,
             random_source& random) {
  builder.open(region);
  for (index_t tile = region.begin; tile < region.end;) {
    const tile_content& content = now[static_cast<std::size_t>(tile)];
    index_t end = tile + 1;
    while (end < region.end && now[static_cast<std::size_t>(end)] == content &&
           random.chance(0.7)) {
      ++end;
    }
    if (content.met) builder.add_run({tile, end}, content.slices);
    tile = end;
  }
  builder.close();
}

row read(const tile_lists& lists, index_t outer, std::size_t inner_tiles) {
  row found(inner_tiles);
  for (const tile_span& span : lists.spans_of(outer)) {
    const auto slices = lists.slices_of(span);
    for (index_t tile = span.inner_begin; tile < span.inner_end; ++tile) {
      found[static_cast<std::size_t>(tile)] = {true, {slices.begin(), slices.end()}};
    }
  }
  return found;
}

}  // namespace

TEST_CASE("lists hold what each outer tile was told, however little changes", "[plan]") {
  const std::uint64_t seed = test_seed(31337);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 300; ++round) {
    const index_t inner_tiles = random.integer(1, 14);
    const index_t outer_tiles = random.integer(1, 14);
    const tiled_axis inner{inner_tiles * 3 - random.integer(0, 2), 3};
    tile_lists_builder builder(inner, outer_tiles);
    std::vector<row> rows;
    row now(static_cast<std::size_t>(inner_tiles));
    for (index_t outer = 0; outer < outer_tiles; ++outer) {
      for (index_t begin = random.integer(0, 4); begin < inner_tiles;) {
        const index_range region = {begin, random.integer(begin + 1, inner_tiles)};
        const bool same = random.chance(0.2);
        for (index_t tile = region.begin; tile < region.end && !same; ++tile) {
          now[static_cast<std::size_t>(tile)] = random_content(random);
        }
        replace(builder, region, now, random);
        begin = region.end + random.integer(0, 5);
      }
      builder.end_outer();
      rows.push_back(now);
      index_t full = 0;
      index_t partial = 0;
      index_t tokens = 0;
      for (index_t tile = 0; tile < inner_tiles; ++tile) {
        const tile_content& content = now[static_cast<std::size_t>(tile)];
        full += content.met && content.slices.empty() ? 1 : 0;
        partial += content.slices.empty() ? 0 : 1;
        tokens += content.met ? inner.tokens_of(tile).size() : 0;
      }
      CAPTURE(round, outer);
      REQUIRE(builder.of_outer().full_tiles == full);
      REQUIRE(builder.of_outer().partial_tiles == partial);
      REQUIRE(builder.of_outer().inner_tokens == tokens);
    }
    const tile_lists lists = builder.take();
    for (index_t outer = 0; outer < outer_tiles; ++outer) {
      CAPTURE(round, outer);
      REQUIRE(read(lists, outer, static_cast<std::size_t>(inner_tiles)) ==
              rows[static_cast<std::size_t>(outer)]);
    }
  }
}

TEST_CASE("a change at one place leaves the spans of other places alone", "[plan]") {
  tile_lists_builder builder({100, 1}, 3);
  const std::vector<std::int32_t> slices = {5, 8};
  for (const index_t outer : {0, 1, 2}) {
    builder.open({outer == 0 ? 0 : 60, 100});
    if (outer == 0) {
      builder.add_run({0, 1}, slices);
      builder.add_run({2, 50}, {});
    }
    builder.add_run({60 + outer, 61 + outer}, slices);
    builder.close();
    builder.end_outer();
  }
  const tile_lists lists = builder.take();
  CHECK(lists.spans.size() == 5);                              // two for all, three that move
  CHECK(lists.slice_ids == slices);                            // written once
  CHECK(lists.first_span == std::vector<std::int32_t>(3, 0));  // all begin with the same one
  CHECK(lists.tile_count == std::vector<std::int64_t>(3, 50));
}

TEST_CASE("spans that are told again as they were keep their numbers", "[plan]") {
  tile_lists_builder builder({100, 1}, 4);
  for (const index_t outer : {0, 1, 2, 3}) {
    builder.open({0, 100});
    builder.add_run({2, 10}, {});
    builder.add_run({20, 30}, std::vector<std::int32_t>{4});
    if (outer == 1) builder.add_run({40, 50}, {});
    builder.add_run({60, 70}, {});
    builder.close();
    builder.end_outer();
  }
  const tile_lists lists = builder.take();
  CHECK(lists.spans.size() == 4);  // three of the first outer tile, one of the second
  CHECK(lists.tile_count == std::vector<std::int64_t>{28, 38, 28, 28});
}

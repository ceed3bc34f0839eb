// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/plan/slice_visits.hpp>
#include <optional>

#include "plan/plan_masks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;
using detail::slice_visits;
using detail::tiled_axis;

namespace {

/// What a slice shows of a tile: nothing, all inner tokens to each of its rows, or a part.
enum class look { absent, solid, part };

look look_at(const slice& s, const index_range& rows, const index_range& columns) {
  const slice inside = cut(s, rows, columns);
  const index_t pairs = visible_pairs(inside);
  if (pairs == 0) return look::absent;
  return pairs == intersect(s.queries, rows).size() * columns.size() ? look::solid : look::part;
}

/// The columns that every row sees, where all rows see the same ones: then the height of a tile
/// does not matter.
std::optional<index_range> columns_of_all_rows(const slice& s,
                                               const index_range& rows,
                                               const index_range& columns) {
  std::optional<index_range> all;
  for (index_t row = rows.begin; row < rows.end; ++row) {
    index_range seen = s.queries.contains(row) ? intersect(s.keys_of(row), columns) : index_range{};
    if (seen.empty()) seen = {};
    if (all && *all != seen) return std::nullopt;
    all = seen;
  }
  return all;
}

}  // namespace

TEST_CASE("visits show each slice, and name the places where one has changed", "[plan]") {
  const std::uint64_t seed = test_seed(8);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 200; ++round) {
    random_masks draw(random, 0.8);
    const attention_mask mask = draw(random.integer(1, 40), random.integer(1, 40), 4);
    const tiled_axis outer{mask.query_tokens(), random.integer(1, 9)};
    const tiled_axis inner{mask.key_tokens(), random.integer(1, 9)};
    slice_visits visits(mask.slices(), outer, inner);
    const auto count = static_cast<std::int32_t>(mask.slices().size());
    for (index_t tile = 0; tile < outer.tiles(); ++tile) {
      const auto changes = visits.advance(tile);
      CAPTURE(round, tile);
      REQUIRE(std::is_sorted(changes.begin(), changes.end(),
                             [](const auto& a, const auto& b) { return a.begin < b.begin; }));
      const index_range rows = outer.tokens_of(tile);
      for (std::int32_t id = 0; id < count; ++id) {
        const slice& s = mask.slices()[static_cast<std::size_t>(id)];
        const detail::slice_visit& v = visits.of(id);
        REQUIRE((v.met_begin < v.met_end ? v.rows : 0) == intersect(s.queries, rows).size());
        for (index_t column = 0; column < inner.tiles(); ++column) {
          const index_range columns = inner.tokens_of(column);
          const look now = look_at(s, rows, columns);
          const bool solid = v.meets() && v.solid_begin <= column && column < v.solid_end;
          REQUIRE((v.met_begin <= column && column < v.met_end) == (now != look::absent));
          REQUIRE(solid == (now == look::solid));
          if (tile == 0) continue;
          const index_range before = outer.tokens_of(tile - 1);
          const auto old_columns = columns_of_all_rows(s, before, columns);
          const bool same_pattern =
              old_columns && old_columns == columns_of_all_rows(s, rows, columns);
          const slice old = cut(s, before, columns);
          const slice present = cut(s, rows, columns);
          const bool same_part = before.size() == rows.size() &&
                                 old.queries.size() == present.queries.size() &&
                                 visible_pairs(old) == visible_pairs(present);
          const bool same = same_pattern || same_part;
          const bool named = std::any_of(changes.begin(), changes.end(), [&](const auto& c) {
            return c.id == id && c.begin <= column && column < c.end;
          });
          REQUIRE((same || named));
        }
      }
    }
  }
}

TEST_CASE("a rectangle changes where it begins and ends, a band where a diagonal cuts it",
          "[plan]") {
  const auto changes_of = [](const slice& s) {
    const std::vector<slice> slices = {s};
    const tiled_axis outer{100, 10};
    slice_visits visits(slices, outer, {100, 10});
    std::vector<index_t> tiles;
    for (index_t tile = 0; tile < outer.tiles(); ++tile) {
      if (!visits.advance(tile).empty()) tiles.push_back(tile);
    }
    return tiles;
  };
  using tiles = std::vector<index_t>;
  CHECK(changes_of({{20, 60}, {0, 100}}) == tiles{2, 6});
  CHECK(changes_of({{25, 65}, {0, 100}}) == tiles{2, 3, 6, 7});
  CHECK(changes_of({{25, 28}, {0, 100}}) == tiles{2, 3});
  // Its last two rows see one and two keys fewer.
  CHECK(changes_of({{0, 82}, {50, 53}, -79, 100}) == tiles{0, 8, 9});
  CHECK(changes_of({{0, 100}, {0, 100}, no_lower_diagonal, 0}) ==
        tiles{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
}

TEST_CASE("runs in order are merged", "[plan]") {
  const std::uint64_t seed = test_seed(3);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 200; ++round) {
    std::vector<index_t> values;
    for (index_t run = random.integer(0, 12); run > 0; --run) {
      index_t value = random.integer(0, 20);
      for (index_t size = random.integer(0, 6); size > 0; --size) {
        values.push_back(value += random.integer(0, 5));
      }
    }
    std::vector<index_t> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    detail::sort_by_runs(values, std::less<>());
    REQUIRE(values == sorted);
  }
}

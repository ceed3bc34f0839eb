// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/row_run_merger.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using runs = std::vector<index_range>;

namespace {

std::vector<slice> merged(const std::vector<runs>& rows) {
  detail::row_run_merger merger;
  for (std::size_t query = 0; query < rows.size(); ++query) {
    merger.add_row(static_cast<index_t>(query), rows[query]);
  }
  return merger.take();
}

}  // namespace

TEST_CASE("every shape of one slice merges into one slice") {
  // A rectangle; both ends moving; left stays then moves; right moves then stays; all at once.
  CHECK(merged({{{1, 3}}, {{1, 3}}}) == std::vector<slice>{{.queries = {0, 2}, .keys = {1, 3}}});
  CHECK(merged({{{0, 2}}, {{1, 3}}, {{2, 4}}}) ==
        std::vector<slice>{{.queries = {0, 3}, .keys = {0, 4}, .lower = 0, .upper = 1}});
  CHECK(merged({{{0, 4}}, {{0, 4}}, {{1, 4}}}) ==
        std::vector<slice>{{.queries = {0, 3}, .keys = {0, 4}, .lower = -1}});
  CHECK(merged({{{0, 1}}, {{0, 2}}, {{0, 2}}}) ==
        std::vector<slice>{{.queries = {0, 3}, .keys = {0, 2}, .upper = 0}});
  CHECK(merged({{{0, 1}}, {{0, 2}}, {{1, 3}}, {{2, 3}}}) ==
        std::vector<slice>{{.queries = {0, 4}, .keys = {0, 3}, .lower = -1, .upper = 0}});
}

TEST_CASE("ends that no slice has begin a new one") {
  CHECK(merged({{{1, 4}}, {{0, 4}}}).size() == 2);            // left moves back
  CHECK(merged({{{0, 4}}, {{0, 3}}}).size() == 2);            // right moves back
  CHECK(merged({{{0, 4}}, {{2, 4}}}).size() == 2);            // left jumps
  CHECK(merged({{{0, 2}}, {{0, 4}}}).size() == 2);            // right jumps
  CHECK(merged({{{0, 4}}, {{1, 4}}, {{1, 4}}}).size() == 2);  // left moves, then stays
  CHECK(merged({{{0, 2}}, {{0, 2}}, {{0, 3}}}).size() == 2);  // right stays, then moves
  CHECK(merged({{{0, 2}}, {}, {{0, 2}}}).size() == 2);        // a row that sees nothing
}

TEST_CASE("a skipped row sees nothing") {
  detail::row_run_merger merger;
  merger.add_row(0, runs{{0, 2}});
  merger.add_row(2, runs{{0, 2}});
  CHECK(merger.take().size() == 2);
}

TEST_CASE("random rows come back pair by pair") {
  const auto seed = test_seed(206);
  CAPTURE(seed);
  random_source random(seed);
  constexpr index_t keys = 10;
  for (int round = 0; round < 300; ++round) {
    const double hidden = random.real(0, 1);
    std::vector<runs> rows(12);
    for (runs& row : rows) {
      for (index_t key = 0; key < keys; ++key) {
        if (random.chance(hidden)) continue;
        if (!row.empty() && row.back().end == key) {
          ++row.back().end;
        } else {
          row.push_back({key, key + 1});
        }
      }
    }
    const std::vector<slice> slices = merged(rows);
    index_t wrong = 0;
    for (std::size_t query = 0; query < rows.size(); ++query) {
      for (index_t key = 0; key < keys; ++key) {
        index_t expected = 0;
        for (const index_range& run : rows[query]) expected += run.contains(key) ? 1 : 0;
        index_t found = 0;
        for (const slice& s : slices) {
          found += s.contains(static_cast<index_t>(query), key) ? 1 : 0;
        }
        if (found != expected) ++wrong;
      }
    }
    CAPTURE(round, hidden);
    REQUIRE(wrong == 0);
  }
}

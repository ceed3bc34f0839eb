// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/tile_mask.hpp>

#include <numeric>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using cpu::detail::tile_slices;

namespace {

constexpr index_t axis = 24;

/// Slices that share no pair: diagonal bands next to one another, each cut to a random rectangle,
/// in random order.
std::vector<slice> random_disjoint_slices(random_source& random) {
  std::vector<slice> slices;
  for (index_t diagonal = -axis; diagonal < axis;) {
    const index_t upper = diagonal + random.integer(0, 9);
    const index_t query = random.integer(0, axis);
    const index_t key = random.integer(0, axis);
    slices.push_back(
        {{query, random.integer(query, axis)}, {key, random.integer(key, axis)}, diagonal, upper});
    diagonal = upper + 1 + random.integer(0, 2);
  }
  std::shuffle(slices.begin(), slices.end(), random.engine());
  return slices;
}

bool sees(const tile_slices& tile, index_t query, index_t key) {
  for (const std::int32_t id : tile.ids) {
    if ((*tile.all)[static_cast<std::size_t>(id)].contains(query, key)) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("runs and reach agree with slice::contains", "[tile_mask]") {
  const std::uint64_t seed = test_seed(71);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 400; ++round) {
    CAPTURE(round);
    const std::vector<slice> slices = random_disjoint_slices(random);
    std::vector<std::int32_t> ids(slices.size());
    std::iota(ids.begin(), ids.end(), 0);
    ids.resize(static_cast<std::size_t>(random.integer(0, static_cast<index_t>(ids.size()))));
    const tile_slices tile{&slices, ids};
    const index_t first_key = random.integer(0, axis);
    const index_range keys{first_key, random.integer(first_key, axis)};
    const index_t first_query = random.integer(0, axis);
    const index_range queries{first_query, random.integer(first_query, axis)};

    index_range seen{keys.end, keys.begin};
    for (index_t query = queries.begin; query < queries.end; ++query) {
      CAPTURE(query);
      std::vector<index_range> runs(static_cast<std::size_t>(keys.size()) + 1, {-7, -7});
      const index_t count = cpu::detail::sorted_runs(tile, query, keys, runs.data());
      REQUIRE(count <= keys.size());
      CHECK(runs.back() == index_range{-7, -7});
      std::vector<bool> covered(static_cast<std::size_t>(axis));
      for (index_t r = 0; r < count; ++r) {
        const index_range& run = runs[static_cast<std::size_t>(r)];
        CHECK_FALSE(run.empty());
        if (r > 0) CHECK(runs[static_cast<std::size_t>(r) - 1].end <= run.begin);
        for (index_t key = run.begin; key < run.end; ++key) {
          covered[static_cast<std::size_t>(key)] = true;
        }
      }
      for (index_t key = 0; key < axis; ++key) {
        const bool visible = keys.contains(key) && sees(tile, query, key);
        REQUIRE(covered[static_cast<std::size_t>(key)] == visible);
        if (visible) seen = {std::min(seen.begin, key), std::max(seen.end, key + 1)};
      }
    }
    const index_range reached = cpu::detail::reach(tile, queries, keys);
    CHECK(reached.empty() == seen.empty());
    if (!seen.empty()) CHECK(reached == seen);
  }
}

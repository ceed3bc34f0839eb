// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/plan/seen_keys.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

TEST_CASE("seen keys are the union of what slices see", "[plan]") {
  const std::uint64_t seed = test_seed(2718);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t slices : {0, 1, 5, 1023, 1024, 1025, 5000}) {
    for (const index_t longest : {1, 10, 400}) {
      constexpr index_t keys = 6000;
      std::vector<slice> drawn;
      std::vector<bool> seen(keys + 1, false);
      for (index_t i = 0; i < slices; ++i) {
        const index_t begin = random.integer(0, keys - 1);
        const index_range range = {begin,
                                   random.integer(begin + 1, std::min(keys, begin + longest))};
        drawn.push_back({{i, i + 1}, range});
        std::fill(seen.begin() + range.begin, seen.begin() + range.end, true);
      }
      std::vector<index_range> runs;
      for (index_t key = 0; key < keys; ++key) {
        if (!seen[static_cast<std::size_t>(key)]) continue;
        if (runs.empty() || runs.back().end != key) runs.push_back({key, key});
        runs.back().end = key + 1;
      }
      CAPTURE(slices, longest);
      REQUIRE(detail::seen_key_runs(drawn) == runs);
    }
  }
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/slice_overlap.hpp>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

namespace {

bool any_overlap(const std::vector<slice>& slices) {
  for (std::size_t a = 0; a < slices.size(); ++a) {
    for (std::size_t b = a + 1; b < slices.size(); ++b) {
      if (visible_pairs(intersect(slices[a], slices[b])) > 0) return true;
    }
  }
  return false;
}

void check_overlap(const std::vector<slice>& slices) {
  const auto found = first_overlap(slices);
  REQUIRE(found.has_value() == any_overlap(slices));
  if (!found) return;
  REQUIRE(found->first < found->second);
  REQUIRE(slices[static_cast<std::size_t>(found->first)].contains(found->query, found->key));
  REQUIRE(slices[static_cast<std::size_t>(found->second)].contains(found->query, found->key));
}

}  // namespace

TEST_CASE("no slices and one slice do not overlap") {
  CHECK_FALSE(first_overlap({}).has_value());
  check_overlap({{.queries = {0, 4}, .keys = {0, 4}}});
}

TEST_CASE("an overlap names both slices and a pair of both") {
  const std::vector<slice> slices = {{.queries = {0, 4}, .keys = {4, 8}},
                                     {.queries = {0, 4}, .keys = {0, 4}, .upper = 0},
                                     {.queries = {3, 6}, .keys = {7, 9}}};
  const auto found = first_overlap(slices);
  REQUIRE(found.has_value());
  CHECK(found->first == 0);
  CHECK(found->second == 2);
  CHECK(found->query == 3);
  CHECK(found->key == 7);
}

TEST_CASE("overlaps that only a removal or a moving end brings together are found") {
  // The slice between the two ends before they meet.
  check_overlap({{.queries = {0, 9}, .keys = {0, 9}, .lower = -2, .upper = 0},
                 {.queries = {0, 2}, .keys = {3, 5}},
                 {.queries = {0, 9}, .keys = {6, 8}}});
  // The same slice twice; an empty slice inside another; touching ends.
  check_overlap({{.queries = {1, 2}, .keys = {1, 2}}, {.queries = {1, 2}, .keys = {1, 2}}});
  check_overlap({{.queries = {0, 9}, .keys = {0, 9}}, {.queries = {2, 2}, .keys = {1, 3}}});
  check_overlap({{.queries = {0, 3}, .keys = {0, 3}, .upper = 0},
                 {.queries = {0, 3}, .keys = {0, 3}, .lower = 1}});
}

TEST_CASE("the sweep agrees with comparing all pairs, on disjoint and on arbitrary slices") {
  const auto seed = test_seed(208);
  CAPTURE(seed);
  random_source random(seed);
  index_t overlaps = 0;
  constexpr int rounds = 4000;
  for (int round = 0; round < rounds; ++round) {
    CAPTURE(round);
    std::vector<slice> slices = random_mask(random, 12, 12).slices();
    std::shuffle(slices.begin(), slices.end(), random.engine());
    check_overlap(slices);
    const index_t more = random.integer(0, 3);
    for (index_t i = 0; i < more; ++i) slices.push_back(random_slice(random, 12, 12));
    // Many slices that begin in one row: what meets then, meets after a removal.
    if (random.chance(0.3)) {
      for (slice& s : slices) s.queries.begin = 0;
    }
    check_overlap(slices);
    overlaps += any_overlap(slices) ? 1 : 0;
  }
  // Both outcomes are met often, or this test shows nothing.
  CHECK(overlaps > rounds / 10);
  CHECK(overlaps < rounds - rounds / 10);
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/slice.hpp>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

namespace {

constexpr index_t side = 5;

/// Calls visit(slice) for slices over a small square: every range and band, and one beyond each
/// end.
template <class Visit>
void for_each_slice(const Visit& visit) {
  const index_range ranges[] = {{0, 0}, {0, 1}, {0, 3}, {1, 4}, {2, 5}, {3, 3}, {0, side}};
  for (const index_range& queries : ranges) {
    for (const index_range& keys : ranges) {
      for (index_t lower = -side - 1; lower <= side + 1; ++lower) {
        for (index_t upper = -side - 1; upper <= side + 1; ++upper) {
          visit(slice{queries, keys, lower, upper});
        }
        visit(slice{queries, keys, lower, no_upper_diagonal});
        visit(slice{queries, keys, no_lower_diagonal, lower});
      }
      visit(slice{queries, keys});
    }
  }
}

template <class Visit>
void for_each_pair(const Visit& visit) {
  for (index_t query = 0; query < side; ++query) {
    for (index_t key = 0; key < side; ++key) visit(query, key);
  }
}

index_t counted_pairs(const slice& s) {
  index_t pairs = 0;
  for_each_pair([&](index_t query, index_t key) { pairs += s.contains(query, key) ? 1 : 0; });
  return pairs;
}

}  // namespace

TEST_CASE("a slice counts, trims, transposes, moves and lists its pairs") {
  index_t wrong_counts = 0;
  index_t wrong_pairs = 0;
  index_t wrong_rows = 0;
  index_t loose = 0;
  for_each_slice([&](const slice& s) {
    const slice tight = trimmed(s);
    const slice moved = shifted(s, 3, -2);
    if (visible_pairs(s) != counted_pairs(s)) ++wrong_counts;
    if (visible_pairs(s.transposed()) != visible_pairs(s)) ++wrong_counts;
    if (visible_pairs(moved) != visible_pairs(s)) ++wrong_counts;
    for_each_pair([&](index_t query, index_t key) {
      const bool visible = s.contains(query, key);
      if (s.transposed().contains(key, query) != visible) ++wrong_pairs;
      if (tight.contains(query, key) != visible) ++wrong_pairs;
      if (moved.contains(query + 3, key - 2) != visible) ++wrong_pairs;
      if (s.queries.contains(query) && s.keys_of(query).contains(key) != visible) ++wrong_rows;
    });
    // Tight: the first and last row and column of the rectangle each hold a pair.
    for (const index_t row : {tight.queries.begin, tight.queries.end - 1}) {
      if (!tight.queries.empty() && tight.keys_of(row).empty()) ++loose;
    }
    const slice flipped = tight.transposed();
    for (const index_t column : {tight.keys.begin, tight.keys.end - 1}) {
      if (!tight.keys.empty() && flipped.keys_of(column).empty()) ++loose;
    }
    if (visible_pairs(s) == 0 && !(tight.queries.empty() && tight.keys.empty())) ++loose;
  });
  CHECK(wrong_counts == 0);
  CHECK(wrong_pairs == 0);
  CHECK(wrong_rows == 0);
  CHECK(loose == 0);
}

TEST_CASE("cutting and intersecting keep exactly the common pairs") {
  const auto seed = test_seed(201);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 3000; ++round) {
    const slice a = random_slice(random, side, side);
    const slice b = random_slice(random, side, side);
    const slice part = cut(a, b.queries, b.keys);
    const slice both = intersect(a, b);
    index_t wrong = 0;
    for_each_pair([&](index_t query, index_t key) {
      const bool in_a = a.contains(query, key);
      if (part.contains(query, key) !=
          (in_a && b.queries.contains(query) && b.keys.contains(key))) {
        ++wrong;
      }
      if (both.contains(query, key) != (in_a && b.contains(query, key))) ++wrong;
    });
    CAPTURE(round);
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("limits that never cut survive transposition and shifts") {
  const slice s = {.queries = {0, 4}, .keys = {0, 9}};
  CHECK(s.transposed() == slice{.queries = {0, 9}, .keys = {0, 4}});
  CHECK(shifted(s, 100, 7) == slice{.queries = {100, 104}, .keys = {7, 16}});
}

TEST_CASE("pair counts of the longest axes are exact") {
  constexpr index_t n = index_t{1} << 31;
  CHECK(visible_pairs(slice{.queries = {0, n}, .keys = {0, n}}) == n * n);
  CHECK(visible_pairs(slice{.queries = {0, n}, .keys = {0, n}, .upper = 0}) == n / 2 * (n + 1));
  CHECK(visible_pairs(slice{.queries = {0, n}, .keys = {0, n}, .lower = 0, .upper = 0}) == n);
}

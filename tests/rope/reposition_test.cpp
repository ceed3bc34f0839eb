// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/rope/reposition.hpp>
#include <cmath>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"
#include "support/rope_variants.hpp"

namespace blockattn_test {
namespace {

std::vector<double> rotated(const rope& rotation, std::vector<double> row, double position) {
  rotate(rotation, token_major(row.data(), 1, 1, rotation.head_dim()), std::vector{position});
  return row;
}

std::vector<double> moved(const rope& rotation, std::vector<double> row, double delta) {
  reposition(rotation, token_major(row.data(), 1, 1, rotation.head_dim()), delta);
  return row;
}

}  // namespace

TEST_CASE("reposition turns without magnitude: U_b R_a = R_(a+b), U_-b U_b = I", "[rope]") {
  const std::uint64_t seed = test_seed(7);
  CAPTURE(seed);
  random_source random(seed);
  for (const auto& [name, rotation] : rope_variants()) {
    CAPTURE(name);
    for (int repeat = 0; repeat < 10; ++repeat) {
      // Multiples of 1/16 below 2^41: sums are exact, whole, fractional and negative.
      const double size = repeat < 5 ? 0x1p16 : 0x1p44;
      const double a = std::floor(random.real(-size, size)) / 16;
      const double b = std::floor(random.real(-size, size)) / 16;
      CAPTURE(a, b);
      const auto row = random.normal_values<double>(rotation.head_dim());
      const auto at_a = rotated(rotation, row, a);
      const auto at_sum = moved(rotation, at_a, b);
      CHECK(largest_difference(at_sum, rotated(rotation, row, a + b)) < 1e-13);
      CHECK(largest_difference(moved(rotation, at_sum, -b), at_a) < 1e-13);
      CHECK(largest_difference(moved(rotation, row, b),
                               rotated_by_definition(rotation, row, b, 1)) < 1e-13);
      CHECK(std::abs(norm(moved(rotation, row, b)) - norm(row)) < 1e-13);
      CHECK(moved(rotation, row, 0) == row);
    }
  }
}

TEST_CASE("A shifted query meets an unmoved key as if the key had moved", "[rope]") {
  // key_segment: (R_p q) . (R_(o+j) k) = (U_(-o) R_p q) . (R_j k); with YaRN m appears squared on
  // both sides, which a shift by R would break.
  const std::uint64_t seed = test_seed(8);
  CAPTURE(seed);
  random_source random(seed);
  for (const auto& [name, rotation] : rope_variants()) {
    CAPTURE(name);
    const double p = 5000, o = 4096, j = 17;
    const auto q = random.normal_values<double>(rotation.head_dim());
    const auto k = random.normal_values<double>(rotation.head_dim());
    const auto k_placed = rotated(rotation, k, o + j);
    const auto k_cached = rotated(rotation, k, j);
    const auto q_placed = rotated(rotation, q, p);
    const auto q_shifted = moved(rotation, q_placed, -o);
    double placed = 0, cached = 0;
    for (std::size_t i = 0; i < q.size(); ++i) {
      placed += q_placed[i] * k_placed[i];
      cached += q_shifted[i] * k_cached[i];
    }
    CHECK(std::abs(placed - cached) < 1e-12);
  }
}

TEST_CASE("One delta for all rows gives the bits of equal deltas for each", "[rope]") {
  const std::uint64_t seed = test_seed(9);
  CAPTURE(seed);
  random_source random(seed);
  const rope rotation({.head_dim = 40, .rotary_dim = 36});
  const index_t tokens = 4, heads = 3;
  auto one = random.normal_values<bfloat16>(tokens * heads * 40);
  auto each = one;
  auto distinct = one;
  reposition(rotation, head_major(one.data(), tokens, heads, 40), -12.25);
  reposition(rotation, head_major(each.data(), tokens, heads, 40),
             std::vector<double>{-12.25, -12.25, -12.25, -12.25});
  reposition(rotation, head_major(distinct.data(), tokens, heads, 40),
             std::vector<double>{-12.25, 3, -12.25, 0});
  const auto view = [&](std::vector<bfloat16>& values) {
    return head_major(values.data(), tokens, heads, 40);
  };
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      bool same_each = true, same_distinct = true;
      for (index_t i = 0; i < 40; ++i) {
        const auto bits = view(one).row(t, h)[i].bits;
        same_each = same_each && bits == view(each).row(t, h)[i].bits;
        same_distinct = same_distinct && bits == view(distinct).row(t, h)[i].bits;
      }
      CHECK(same_each);
      CHECK(same_distinct == (t % 2 == 0));
    }
  }
}

TEST_CASE("reposition refuses what does not fit", "[rope]") {
  const rope rotation({.head_dim = 4});
  std::vector<float> data(8, 1.0F);
  const auto rows = token_major(data.data(), 2, 1, 4);
  CHECK_THROWS_WITH(reposition(rotation, rows, std::nan("")), contains("reposition: delta"));
  CHECK_THROWS_WITH(reposition(rotation, rows, 0x1p60), contains("at most 2^52"));
  CHECK_THROWS_WITH(reposition(rotation, rows, std::vector<double>{1}),
                    contains("1 deltas for 2 tokens"));
  CHECK_THROWS_WITH(reposition(rotation, token_major(data.data(), 1, 1, 8), 1.0),
                    contains("head_dim 8"));
  CHECK_NOTHROW(reposition(rotation, token_major<float>(nullptr, 0, 1, 4), 1.0));
}

}  // namespace blockattn_test

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/footprint.hpp>

#include <algorithm>
#include <limits>
#include <set>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using blockattn::detail::footprint;
using blockattn::detail::footprint_of;
using blockattn::detail::overlap;
using blockattn::detail::same_view;

namespace {

std::set<const short*> elements(const heads_view<short>& view) {
  std::set<const short*> all;
  for (index_t token = 0; token < view.tokens; ++token) {
    for (index_t head = 0; head < view.heads; ++head) {
      for (index_t i = 0; i < view.head_dim; ++i) all.insert(view.row(token, head) + i);
    }
  }
  return all;
}

bool share_an_element(const heads_view<short>& a, const heads_view<short>& b) {
  const auto in_a = elements(a);
  const auto in_b = elements(b);
  return std::any_of(in_b.begin(), in_b.end(),
                     [&](const short* element) { return in_a.contains(element); });
}

heads_view<short> random_view(random_source& random, std::vector<short>& memory) {
  heads_view<short> view = {.data = memory.data() + memory.size() / 2 + random.integer(-25, 25),
                            .tokens = random.integer(0, 5),
                            .heads = random.integer(0, 4),
                            .head_dim = random.integer(0, 6),
                            .token_stride = random.integer(-14, 14),
                            .head_stride = random.integer(-14, 14)};
  return view;
}

}  // namespace

TEST_CASE("overlap of strided views against their elements, one by one") {
  const auto seed = test_seed(601);
  CAPTURE(seed);
  random_source random(seed);
  std::vector<short> memory(400);
  int apart = 0;
  int conservative = 0;
  for (int round = 0; round < 60000; ++round) {
    const auto a = random_view(random, memory);
    auto b = random_view(random, memory);
    const bool common = random.chance(0.5);
    if (common) b.token_stride = random.chance(0.5) ? a.token_stride : -a.token_stride;
    if (random.chance(0.3)) b.head_stride = a.head_stride;
    CAPTURE(round, a.data - memory.data(), a.tokens, a.heads, a.head_dim, a.token_stride,
            a.head_stride, b.data - memory.data(), b.tokens, b.heads, b.head_dim, b.token_stride,
            b.head_stride);
    const bool exact = share_an_element(a, b);
    const bool found = overlap(footprint_of(a), footprint_of(b));
    REQUIRE(found == overlap(footprint_of(b), footprint_of(a)));
    if (exact) REQUIRE(found);
    // A stride counts where there are several rows along it and they leave a gap.
    const auto counts = [](const heads_view<short>& view) {
      return view.tokens > 1 && std::abs(view.token_stride) > view.head_dim * view.heads;
    };
    if (common && counts(a) && counts(b) && std::abs(a.head_stride) <= a.head_dim &&
        std::abs(b.head_stride) <= b.head_dim) {
      REQUIRE(found == exact);
    }
    apart += exact ? 0 : 1;
    conservative += found && !exact ? 1 : 0;
  }
  CHECK(apart > 10000);
  CHECK(conservative < apart / 4);
}

TEST_CASE("a contiguous buffer against any view is exact") {
  const auto seed = test_seed(602);
  CAPTURE(seed);
  random_source random(seed);
  std::vector<short> memory(400);
  for (int round = 0; round < 20000; ++round) {
    const auto a = random_view(random, memory);
    const auto b = token_major(memory.data() + 200 + random.integer(-40, 40), random.integer(1, 3),
                               random.integer(1, 2), random.integer(1, 3));
    CAPTURE(round);
    REQUIRE(overlap(footprint_of(a), footprint_of(b)) == share_an_element(a, b));
  }
}

TEST_CASE("records beside one another are apart however long they are") {
  // For each of 4 heads: 100,000 rows of 80 in places of 96, then as many of 56 in places of 64.
  constexpr index_t rows = 100000, head = rows * (96 + 64);
  float* const data = reinterpret_cast<float*>(std::uintptr_t{1} << 40);
  const heads_view<float> keys = {data, rows, 4, 80, 96, head};
  const heads_view<float> values = {data + rows * 96, rows, 4, 56, 64, head};
  CHECK_FALSE(overlap(footprint_of(keys), footprint_of(values)));
  heads_view<float> nearer = values;
  nearer.data -= 17;
  CHECK(overlap(footprint_of(keys), footprint_of(nearer)));
}

TEST_CASE("the stride of one row is not looked at") {
  constexpr index_t far = std::numeric_limits<index_t>::max();
  float row[8] = {};
  const heads_view<float> view = {row, 1, 1, 8, far, far};
  CHECK(overlap(footprint_of(view), footprint_of(view)));
  CHECK(blockattn::detail::byte_range_of(view).size() == 32);
}

TEST_CASE("views of one fused buffer do not overlap") {
  std::vector<float> memory(static_cast<std::size_t>(7 * 3 * 4 * 8));
  float* const data = memory.data();
  // (tokens, 3, heads, head_dim), (tokens, heads, 3, head_dim) and (heads, tokens, 3, head_dim).
  const auto check = [&](index_t third, index_t token_stride, index_t head_stride) {
    const auto part = [&](index_t i) {
      return footprint_of(heads_view<float>{data + i * third, 7, 4, 8, token_stride, head_stride});
    };
    CHECK_FALSE(overlap(part(0), part(1)));
    CHECK_FALSE(overlap(part(1), part(2)));
    CHECK_FALSE(overlap(part(0), part(2)));
    CHECK(overlap(part(1), part(1)));
    const auto shifted =
        footprint_of(heads_view<float>{data + third - 1, 7, 4, 8, token_stride, head_stride});
    CHECK(overlap(part(0), shifted));
    CHECK(overlap(part(1), shifted));
    CHECK_FALSE(overlap(part(2), shifted));
  };
  check(4 * 8, 3 * 4 * 8, 8);
  check(8, 3 * 4 * 8, 3 * 8);
  check(8, 3 * 8, 7 * 3 * 8);
}

TEST_CASE("two views are the same when each element has one address") {
  float memory[64] = {};
  const heads_view<float> rows = {memory, 3, 2, 4, 16, 6};
  CHECK(same_view(rows, heads_view<const float>(rows)));
  const heads_view<float> from_the_end = {memory + 32, 3, 2, 4, -16, 6};
  CHECK(overlap(footprint_of(rows), footprint_of(from_the_end)));
  CHECK_FALSE(same_view(rows, from_the_end));
  CHECK_FALSE(same_view(rows, heads_view<float>{memory, 3, 2, 4, 16, 5}));
  CHECK_FALSE(same_view(
      rows, heads_view<std::int32_t>{reinterpret_cast<std::int32_t*>(memory), 2, 2, 4, 16, 6}));
  CHECK_FALSE(same_view(token_major(memory, 2, 2, 4), head_major(memory, 2, 2, 4)));
  CHECK(same_view(token_major(memory, 1, 2, 4), head_major(memory, 1, 2, 4)));
  CHECK(same_view(lse_view<float>{memory, 2, 2, 2, 1}, lse_view<const float>{memory, 2, 2, 2, 1}));
  CHECK_FALSE(same_view(lse_view<float>{memory, 2, 2, 2, 1}, lse_view<float>{memory, 2, 2, 1, 2}));
  CHECK(same_view(std::span<float>(memory, 3), std::span<const float>(memory, 3)));
  CHECK_FALSE(same_view(std::span<float>(memory, 3), std::span<float>(memory, 2)));
}

TEST_CASE("a span and log-sum-exps have footprints too") {
  float memory[40] = {};
  const lse_view<float> lse = {memory + 8, 4, 1, 9, 1};  // behind rows of 8
  const heads_view<float> rows = {memory, 4, 1, 8, 9, 8};
  CHECK_FALSE(overlap(footprint_of(lse), footprint_of(rows)));
  CHECK(overlap(footprint_of(lse), footprint_of(heads_view<float>{memory, 4, 1, 9, 9, 9})));
  CHECK(overlap(footprint_of(lse), footprint_of(std::span<float>(memory + 17, 1))));
  CHECK_FALSE(overlap(footprint_of(lse), footprint_of(std::span<float>(memory + 9, 8))));
  CHECK_FALSE(overlap(footprint_of(lse_view<float>{}), footprint_of(rows)));
  CHECK_FALSE(overlap(footprint_of(std::span<float>()), footprint_of(std::span<float>())));
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/scatter_rows_backward.hpp>
#include <blockattn/layout/sink_tokens.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "layout/layout_cases.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

using rows = std::vector<double>;

double dot(const rows& a, const rows& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

rows nan_rows(std::size_t size) { return rows(size, std::nan("")); }

/// A layout of ragged sequences with any kind of sinks, sometimes none.
block_layout random_layout(random_source& random) {
  const bool shared = random.chance(0.4);
  const bool at_end = !shared && random.chance(0.5);
  return with_sink_tokens(
      packed_layout(random_lengths(random)),
      {.tokens_per_block = random.integer(0, 3),
       .placement = at_end ? sink_placement::block_end : sink_placement::block_start,
       .sharing = shared ? sink_sharing::shared : sink_sharing::per_block});
}

}  // namespace

TEST_CASE("one set of sinks gets the sum over its blocks") {
  const auto layout = with_sink_tokens(layout_of({2, 0, 1}), {.tokens_per_block = 2});
  const std::array<float, 9> d_out = {1, 2, 10, 11, 4, 8, 16, 32, 12};
  std::vector<float> d_source(3, 99), d_sinks(2, 99);
  scatter_rows_backward(layout, d_out, d_source, d_sinks);
  CHECK(d_source == std::vector<float>{10, 11, 12});
  CHECK(d_sinks == std::vector<float>{21, 42});
  scatter_rows_backward_accumulate(layout, d_out, d_source, d_sinks);
  CHECK(d_source == std::vector<float>{20, 22, 24});
  CHECK(d_sinks == std::vector<float>{42, 84});

  std::vector<float> d_each(6, 99);
  scatter_rows_backward(layout, d_out, d_source, d_each);
  CHECK(d_each == std::vector<float>{1, 2, 4, 8, 16, 32});
  CHECK(d_source == std::vector<float>{10, 11, 12});
}

TEST_CASE("the sum runs over sequences, and a set without blocks gets 0") {
  const block_layout parts[] = {layout_of({1, 1}), layout_of({2})};
  const auto layout = with_sink_tokens(pack_sequences(parts),
                                       {.tokens_per_block = 1, .sharing = sink_sharing::shared});
  std::vector<double> d_sinks(2, 99);
  scatter_rows_backward(layout, rows{1, -1, 0, 0, 0, 0, 3, -3, 0, 0, 0, 0}, std::span<double>(),
                        d_sinks, 2);
  CHECK(d_sinks == std::vector<double>{4, -4});
  const auto empty = with_sink_tokens(layout_of({}), {.tokens_per_block = 2});
  scatter_rows_backward(empty, rows{}, std::span<double>(), d_sinks);
  CHECK(d_sinks == std::vector<double>{0, 0});
}

TEST_CASE("the adjoint identity: <scatter(x, s), y> = <x, dx> + <s, ds>") {
  const auto seed = test_seed(105);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 100; ++round) {
    const auto layout = random_layout(random);
    const index_t columns = random.chance(0.2) ? random.integer(15, 35) : random.integer(1, 4);
    const index_t sinks = layout.tokens() - layout.source_tokens();
    const bool one_set = random.chance(0.5);
    CAPTURE(round, columns, layout.tokens(), sinks, one_set);
    const rows x = random.normal_values<double>(layout.source_tokens() * columns);
    const rows s = random.normal_values<double>(
        (one_set ? layout.sink_options().tokens_per_block : sinks) * columns);
    const rows y = random.normal_values<double>(layout.tokens() * columns);
    rows out = nan_rows(y.size());
    scatter_rows(layout, x, s, out, columns);
    rows dx = nan_rows(x.size()), ds = nan_rows(s.size());
    scatter_rows_backward(layout, y, dx, ds, columns);
    CHECK(std::abs(dot(out, y) - dot(x, dx) - dot(s, ds)) < 1e-10);

    rows twice_dx = dx, twice_ds = ds;
    scatter_rows_backward_accumulate(layout, y, twice_dx, twice_ds, columns);
    for (double& value : dx) value *= 2;
    for (double& value : ds) value *= 2;
    CHECK(twice_dx == dx);
    CHECK(twice_ds == ds);

    rows gathered = nan_rows(x.size());
    gather_rows(layout, y, gathered, columns);
    rows d_rows = nan_rows(y.size());
    gather_rows_backward(layout, x, d_rows, columns);
    CHECK(std::abs(dot(gathered, x) - dot(y, d_rows)) < 1e-10);
    rows twice = d_rows;
    gather_rows_backward_accumulate(layout, x, twice, columns);
    for (double& value : d_rows) value *= 2;
    CHECK(twice == d_rows);
  }
}

TEST_CASE("16-bit gradients are summed in fp32 and rounded once") {
  // 257 sinks of gradient 1 and one of 2^-8: bf16 sums would stop at 256.
  const auto layout =
      with_sink_tokens(layout_of(std::vector<index_t>(257, 1)), {.tokens_per_block = 1});
  std::vector<bfloat16> d_out(514);
  for (bfloat16& value : d_out) store_scalar(value, 1.0F);
  std::vector<bfloat16> d_source(257);
  std::vector<float> d_sinks(1);
  scatter_rows_backward(layout, d_out, d_source, d_sinks);
  CHECK(d_sinks[0] == 257.0F);
  for (const bfloat16& value : d_source) REQUIRE(load_scalar(value) == 1.0F);
  // A size that GCC 12 cannot see: it warns of writes behind one element that do not happen.
  std::vector<bfloat16> d_narrow(static_cast<std::size_t>(layout.sink_options().tokens_per_block));
  store_scalar(d_narrow[0], 3.0F);
  scatter_rows_backward_accumulate(layout, d_out, std::span<float>(), d_narrow);
  CHECK(load_scalar(d_narrow[0]) == 260.0F);
  scatter_rows_backward(layout, d_out, std::span<float>(), d_narrow);
  CHECK(load_scalar(d_narrow[0]) == 256.0F);  // 257 to nearest even
}

TEST_CASE("gradients of another size are refused, and nothing is written") {
  const auto layout = with_sink_tokens(layout_of({2, 1}), {.tokens_per_block = 1});
  std::vector<float> one(1, 7), two(2, 7), three(3, 7), four(4, 7), five(5, 7);
  CHECK_THROWS_WITH(scatter_rows_backward(layout, four, three, one),
                    contains("scatter_rows_backward: d_out holds 4"));
  CHECK_THROWS_WITH(scatter_rows_backward(layout, five, two, one),
                    contains("d_source_rows holds 2"));
  CHECK_THROWS_WITH(scatter_rows_backward(layout, five, three, three),
                    contains("d_sink_rows holds 3") && contains("1 rows (one set) or 2 rows"));
  CHECK_THROWS_WITH(scatter_rows_backward(layout, five, three, one, 0), contains("columns is 0"));
  CHECK_THROWS_WITH(
      scatter_rows_backward(layout, five, three, one, std::numeric_limits<index_t>::max()),
      contains("d_out holds 5"));
  CHECK_THROWS_WITH(scatter_rows_backward_accumulate(layout, five, two, one),
                    contains("scatter_rows_backward_accumulate: d_source_rows holds 2"));
  CHECK_THROWS_WITH(gather_rows_backward(layout, two, five),
                    contains("gather_rows_backward: d_out holds 2"));
  CHECK_THROWS_WITH(gather_rows_backward(layout, three, four), contains("d_rows holds 4"));
  CHECK_THROWS_WITH(gather_rows_backward(layout, three, five, -1), contains("columns is -1"));
  CHECK_THROWS_WITH(gather_rows_backward_accumulate(layout, three, four),
                    contains("gather_rows_backward_accumulate: d_rows holds 4"));
  CHECK_THROWS_WITH(scatter_rows_backward(layout, five, three, std::span(five).first(1)),
                    contains("scatter_rows_backward: d_sink_rows and d_out overlap in memory"));
  CHECK_THROWS_WITH(scatter_rows_backward(layout, five, three, std::span(three).last(1)),
                    contains("d_source_rows and d_sink_rows overlap in memory"));
  CHECK_THROWS_WITH(gather_rows_backward(layout, std::span(five).last(3), five),
                    contains("gather_rows_backward: d_rows and d_out overlap in memory"));
  for (const auto* spared : {&one, &two, &three, &four, &five}) {
    for (const float value : *spared) CHECK(value == 7);
  }
  // A layout without sinks has none to give gradients to.
  CHECK_THROWS_WITH(scatter_rows_backward(layout_of({2, 1}), three, three, one),
                    contains("d_sink_rows holds 1"));
}

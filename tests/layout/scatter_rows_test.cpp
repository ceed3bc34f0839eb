// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/scatter_rows.hpp>
#include <blockattn/layout/sink_tokens.hpp>

#include <array>
#include <cstdint>
#include <limits>

#include "layout/layout_cases.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

TEST_CASE("token ids scatter with one set of sink ids everywhere") {
  const auto layout = with_sink_tokens(layout_of({2, 0, 1}), {.tokens_per_block = 2});
  const std::vector<std::int32_t> ids = {10, 11, 12};
  const std::array<std::int32_t, 2> sinks = {-1, -2};
  std::vector<std::int32_t> out(9);
  scatter_rows(layout, ids, sinks, out);
  CHECK(out == std::vector<std::int32_t>{-1, -2, 10, 11, -1, -2, -1, -2, 12});
  std::vector<std::int32_t> back(3);
  gather_rows(layout, out, back);
  CHECK(back == ids);
}

TEST_CASE("every block may have sink rows of its own") {
  const auto layout = with_sink_tokens(
      layout_of({2, 1}), {.tokens_per_block = 1, .placement = sink_placement::block_end});
  std::vector<float> out(10);
  scatter_rows(layout, std::vector<float>{1, 2, 3, 4, 5, 6}, std::vector<float>{-1, -2, -3, -4},
               out, 2);
  CHECK(out == std::vector<float>{1, 2, 3, 4, -1, -2, 5, 6, -3, -4});
}

TEST_CASE("rows of a layout without sinks are copied") {
  const auto layout = layout_of({2, 1});
  std::vector<double> out(3);
  scatter_rows(layout, std::vector<double>{1, 2, 3}, {}, out);
  CHECK(out == std::vector<double>{1, 2, 3});
  scatter_rows(block_layout(), std::span<const double>(), {}, std::span<double>());
}

TEST_CASE("scatter agrees with the index maps and gather undoes it") {
  const auto seed = test_seed(104);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    const auto sequences = random_lengths(random);
    CAPTURE(round, sequences);
    const bool shared = random.chance(0.4);
    const bool at_end = !shared && random.chance(0.5);
    const auto layout = with_sink_tokens(
        packed_layout(sequences),
        {.tokens_per_block = random.integer(1, 3),
         .placement = at_end ? sink_placement::block_end : sink_placement::block_start,
         .sharing = shared ? sink_sharing::shared : sink_sharing::per_block});
    const index_t columns = random.integer(1, 4);
    const index_t sinks = layout.tokens() - layout.source_tokens();
    const auto source = random.normal_values<float>(layout.source_tokens() * columns);
    const auto sink = random.normal_values<float>(sinks * columns);
    std::vector<float> out(static_cast<std::size_t>(layout.tokens() * columns));
    scatter_rows(layout, source, sink, out, columns);
    std::vector<float> expected;
    index_t next_sink = 0;
    for (index_t t = 0; t < layout.tokens(); ++t) {
      const auto from = layout.source_of(t);
      const auto row = from ? source.begin() + *from * columns : sink.begin() + next_sink * columns;
      if (!from) ++next_sink;
      expected.insert(expected.end(), row, row + columns);
    }
    CHECK(out == expected);
    std::vector<float> back(source.size());
    gather_rows(layout, out, back, columns);
    CHECK(back == source);
  }
}

TEST_CASE("spans of another size are refused with both sizes") {
  const auto layout = with_sink_tokens(layout_of({2, 1}), {.tokens_per_block = 1});
  std::vector<float> three(3), one(1), two(2), five(5), four(4);
  CHECK_THROWS_WITH(scatter_rows(layout, four, one, five),
                    contains("source_rows holds 4") && contains("3 rows x 1"));
  CHECK_THROWS_WITH(scatter_rows(layout, three, three, five),
                    contains("sink_rows holds 3") && contains("1 rows (one set) or 2 rows"));
  CHECK_THROWS_WITH(scatter_rows(layout, three, {}, five), contains("sink_rows holds 0"));
  CHECK_THROWS_WITH(scatter_rows(layout, three, one, four), contains("out holds 4"));
  CHECK_THROWS_WITH(scatter_rows(layout, three, one, five, 0), contains("columns is 0"));
  CHECK_THROWS_WITH(scatter_rows(layout, three, one, five, 2), contains("3 rows x 2"));
  CHECK_THROWS_WITH(gather_rows(layout, four, three), contains("rows holds 4"));
  CHECK_THROWS_WITH(gather_rows(layout, five, two), contains("out holds 2"));
  CHECK_THROWS_WITH(gather_rows(layout, five, three, -1), contains("columns is -1"));
  constexpr index_t huge = std::numeric_limits<index_t>::max();
  CHECK_THROWS_AS(gather_rows(layout, five, three, huge), error);
  CHECK_THROWS_WITH(scatter_rows(layout, std::span(five).first(3), one, five),
                    contains("scatter_rows: out and source_rows overlap in memory"));
  CHECK_THROWS_WITH(scatter_rows(layout, three, std::span(five).last(1), five),
                    contains("scatter_rows: out and sink_rows overlap in memory"));
  CHECK_THROWS_WITH(gather_rows(layout, five, std::span(five).subspan(1, 3)),
                    contains("gather_rows: out and rows overlap in memory"));
  CHECK_THROWS_WITH(scatter_rows(layout_of({2, 1}), three, one, three),
                    contains("sink_rows holds 1"));
}

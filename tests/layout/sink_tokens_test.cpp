// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/sink_tokens.hpp>

#include <array>
#include <limits>
#include <optional>

#include "layout/layout_cases.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

/// One token of the expected axis: its block and its source token, if it is no sink.
struct expected_token {
  index_t block;
  std::optional<index_t> source;
};

/// The axis with sinks, written out token by token.
std::vector<expected_token> expected_axis(const std::vector<std::vector<index_t>>& sequences,
                                          const sink_token_options& options) {
  std::vector<expected_token> axis;
  index_t block = 0;
  index_t source = 0;
  const auto add_sinks = [&] {
    for (index_t k = 0; k < options.tokens_per_block; ++k) axis.push_back({block, std::nullopt});
  };
  for (const std::vector<index_t>& lengths : sequences) {
    if (options.sharing == sink_sharing::shared && !lengths.empty()) {
      add_sinks();
      ++block;
    }
    for (const index_t length : lengths) {
      const bool own = options.sharing == sink_sharing::per_block;
      if (own && options.placement == sink_placement::block_start) add_sinks();
      for (index_t i = 0; i < length; ++i) axis.push_back({block, source++});
      if (own && options.placement == sink_placement::block_end) add_sinks();
      ++block;
    }
  }
  return axis;
}

void check_sinks(const std::vector<std::vector<index_t>>& sequences,
                 const sink_token_options& options) {
  const block_layout before = packed_layout(sequences);
  const block_layout after = with_sink_tokens(before, options);
  const std::vector<expected_token> axis = expected_axis(sequences, options);
  REQUIRE(after.tokens() == static_cast<index_t>(axis.size()));
  REQUIRE(after.source_tokens() == before.tokens());
  REQUIRE(after.sequences() == before.sequences());
  REQUIRE(after.has_sinks());
  REQUIRE(after.sink_options() == options);
  for (index_t token = 0; token < after.tokens(); ++token) {
    const expected_token& expected = axis[static_cast<std::size_t>(token)];
    REQUIRE(after.block_of(token) == expected.block);
    REQUIRE(after.is_sink(token) == !expected.source.has_value());
    REQUIRE(after.source_of(token) == expected.source);
    if (!expected.source) continue;
    REQUIRE(after.token_of(*expected.source) == token);
    REQUIRE(after.sequence_of(token) == before.sequence_of(*expected.source));
  }
  for (index_t b = 0; b < after.blocks(); ++b) {
    const bool shared_set = options.sharing == sink_sharing::shared &&
                            after.sequence_blocks(after.sequence_of_block(b)).begin == b;
    REQUIRE(after.is_shared_sink_block(b) == shared_set);
    REQUIRE_FALSE((shared_set && after.is_final(b)));
    const bool own = options.sharing == sink_sharing::per_block;
    REQUIRE(after.sink_tokens(b).size() == (own || shared_set ? options.tokens_per_block : 0));
    REQUIRE(after.content_tokens(b).size() == after.source_range(b).size());
    REQUIRE(after.sink_tokens(b).size() + after.content_tokens(b).size() == after.block(b).size());
  }
}

}  // namespace

TEST_CASE("sinks at the start of every block, the final and the empty one included") {
  const auto layout = with_sink_tokens(layout_of({2, 0, 1}), {.tokens_per_block = 2});
  CHECK(layout.tokens() == 9);
  CHECK(layout.block(0) == index_range{0, 4});
  CHECK(layout.sink_tokens(0) == index_range{0, 2});
  CHECK(layout.sink_tokens(1) == index_range{4, 6});
  CHECK(layout.block(1) == index_range{4, 6});
  CHECK(layout.content_tokens(2) == index_range{8, 9});
  CHECK(layout.source_of(8) == 2);
  CHECK(layout.source_of(7) == std::nullopt);
  CHECK(layout.token_of(0) == 2);
}

TEST_CASE("index maps agree with the axis written out, for every small layout and option") {
  for_each_lengths(3, 2, [](const std::vector<index_t>& lengths) {
    for (const index_t count : {1, 2}) {
      CAPTURE(lengths, count);
      check_sinks({lengths}, {.tokens_per_block = count});
      check_sinks({lengths}, {.tokens_per_block = count, .placement = sink_placement::block_end});
      check_sinks({lengths}, {.tokens_per_block = count, .sharing = sink_sharing::shared});
    }
  });
}

TEST_CASE("index maps agree with the axis written out, for packed ragged sequences") {
  const auto seed = test_seed(102);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    const auto sequences = random_lengths(random);
    const index_t count = random.integer(1, 5);
    CAPTURE(round, sequences, count);
    check_sinks(sequences, {.tokens_per_block = count});
    check_sinks(sequences, {.tokens_per_block = count, .placement = sink_placement::block_end});
    check_sinks(sequences, {.tokens_per_block = count, .sharing = sink_sharing::shared});
  }
}

TEST_CASE("packing layouts with equal sinks equals inserting sinks into the packed layout") {
  const std::vector<std::vector<index_t>> sequences = {{2, 1}, {}, {3}};
  for (const sink_sharing sharing : {sink_sharing::per_block, sink_sharing::shared}) {
    const sink_token_options options = {.tokens_per_block = 2, .sharing = sharing};
    std::vector<block_layout> parts;
    for (const auto& lengths : sequences) {
      parts.push_back(with_sink_tokens(layout_of(lengths), options));
    }
    const block_layout packed = pack_sequences(parts);
    const block_layout expected = with_sink_tokens(packed_layout(sequences), options);
    REQUIRE(packed.tokens() == expected.tokens());
    REQUIRE(packed.blocks() == expected.blocks());
    for (index_t t = 0; t < packed.tokens(); ++t) {
      CHECK(packed.source_of(t) == expected.source_of(t));
      CHECK(packed.sequence_of(t) == expected.sequence_of(t));
    }
  }
  const std::array mixed = {with_sink_tokens(layout_of({2}), {.tokens_per_block = 3}),
                            layout_of({2})};
  CHECK_THROWS_WITH(pack_sequences(mixed), contains("parts[1]") && contains("0 and 3"));
}

TEST_CASE("zero sink tokens change nothing") {
  const auto layout = with_sink_tokens(layout_of({2, 1}), {.tokens_per_block = 0});
  CHECK(layout.tokens() == 3);
  CHECK_FALSE(layout.has_sinks());
  CHECK(with_sink_tokens(layout, {.tokens_per_block = 1}).tokens() == 5);
}

TEST_CASE("impossible sinks are refused") {
  const auto once = with_sink_tokens(layout_of({2, 1}), {.tokens_per_block = 4});
  CHECK_THROWS_WITH(with_sink_tokens(once, {.tokens_per_block = 1}),
                    contains("layout has 4 sink tokens per block already"));
  CHECK_THROWS_WITH(with_sink_tokens(layout_of({2}), {.tokens_per_block = -2}),
                    contains("tokens_per_block is -2"));
  CHECK_THROWS_WITH(with_sink_tokens(layout_of({2}), {.placement = sink_placement::block_end,
                                                      .sharing = sink_sharing::shared}),
                    contains("block_end") && contains("shared"));
  CHECK_THROWS_WITH(with_sink_tokens(layout_of({2}), {.placement = static_cast<sink_placement>(2)}),
                    contains("with_sink_tokens: placement is 2"));
  CHECK_THROWS_WITH(with_sink_tokens(layout_of({2}), {.sharing = static_cast<sink_sharing>(2)}),
                    contains("sharing is 2"));
  CHECK_THROWS_WITH(
      with_sink_tokens(layout_of({2}), {.positions = static_cast<sink_positions>(-1)}),
      contains("positions is -1"));
  constexpr index_t huge = std::numeric_limits<index_t>::max();
  CHECK_THROWS_WITH(with_sink_tokens(layout_of({2}), {.tokens_per_block = huge}),
                    contains(std::to_string(huge)));
  CHECK_THROWS_AS(
      with_sink_tokens(layout_of({2}), {.tokens_per_block = huge, .sharing = sink_sharing::shared}),
      error);
  CHECK_THROWS_AS(with_sink_tokens(layout_of({0, 0}), {.tokens_per_block = max_axis_tokens}),
                  error);
}

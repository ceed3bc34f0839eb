// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/positions.hpp>
#include <blockattn/layout/sink_tokens.hpp>

#include "layout/layout_cases.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;
using positions = std::vector<double>;

TEST_CASE("positions without sinks count over the sequence or over the block") {
  const auto layout = packed_layout({{2, 0, 1}, {}, {3}});
  CHECK(global_positions(layout) == positions{0, 1, 2, 0, 1, 2});
  CHECK(block_positions(layout) == positions{0, 1, 0, 0, 1, 2});
  CHECK(global_positions(block_layout()).empty());
  CHECK(block_positions(layout_of({0, 0})).empty());
}

TEST_CASE("counted sinks take part in the count") {
  const auto start = with_sink_tokens(packed_layout({{2, 1}, {1}}), {.tokens_per_block = 2});
  CHECK(global_positions(start) == positions{0, 1, 2, 3, 4, 5, 6, 0, 1, 2});
  CHECK(block_positions(start) == positions{0, 1, 2, 3, 0, 1, 2, 0, 1, 2});
  const auto end = with_sink_tokens(
      packed_layout({{2, 1}}), {.tokens_per_block = 1, .placement = sink_placement::block_end});
  CHECK(global_positions(end) == positions{0, 1, 2, 3, 4});
  CHECK(block_positions(end) == positions{0, 1, 2, 0, 1});
}

TEST_CASE("pinned sinks leave the other tokens where they were") {
  const auto pinned = sink_positions::pinned;
  const auto start =
      with_sink_tokens(packed_layout({{2, 1}, {1}}), {.tokens_per_block = 2, .positions = pinned});
  CHECK(global_positions(start) == positions{0, 1, 0, 1, 0, 1, 2, 0, 1, 0});
  CHECK(block_positions(start) == positions{0, 1, 0, 1, 0, 1, 0, 0, 1, 0});
  const auto end = with_sink_tokens(
      packed_layout({{2, 1}}),
      {.tokens_per_block = 2, .placement = sink_placement::block_end, .positions = pinned});
  CHECK(global_positions(end) == positions{0, 1, 0, 1, 2, 0, 1});
  CHECK(block_positions(end) == positions{0, 1, 0, 1, 0, 0, 1});
}

TEST_CASE("a shared set counts as the beginning of every block") {
  const auto counted = with_sink_tokens(packed_layout({{2, 1}, {}, {1}}),
                                        {.tokens_per_block = 2, .sharing = sink_sharing::shared});
  CHECK(global_positions(counted) == positions{0, 1, 2, 3, 4, 0, 1, 2});
  CHECK(block_positions(counted) == positions{0, 1, 2, 3, 2, 0, 1, 2});
  const auto pinned =
      with_sink_tokens(packed_layout({{2, 1}, {}, {1}}), {.tokens_per_block = 2,
                                                          .sharing = sink_sharing::shared,
                                                          .positions = sink_positions::pinned});
  CHECK(global_positions(pinned) == positions{0, 1, 0, 1, 2, 0, 1, 0});
  CHECK(block_positions(pinned) == positions{0, 1, 0, 1, 0, 0, 1, 0});
}

TEST_CASE("pinned positions of the source tokens equal those without sinks") {
  const auto seed = test_seed(103);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 50; ++round) {
    const auto sequences = random_lengths(random);
    CAPTURE(round, sequences);
    const block_layout before = packed_layout(sequences);
    const block_layout after = with_sink_tokens(
        before, {.tokens_per_block = random.integer(1, 3),
                 .sharing = random.chance(0.5) ? sink_sharing::per_block : sink_sharing::shared,
                 .positions = sink_positions::pinned});
    const positions global = global_positions(after);
    const positions block = block_positions(after);
    positions global_of_sources;
    positions block_of_sources;
    for (index_t source = 0; source < before.tokens(); ++source) {
      global_of_sources.push_back(global[static_cast<std::size_t>(after.token_of(source))]);
      block_of_sources.push_back(block[static_cast<std::size_t>(after.token_of(source))]);
    }
    CHECK(global_of_sources == global_positions(before));
    CHECK(block_of_sources == block_positions(before));
  }
}

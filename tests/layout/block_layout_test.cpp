// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/block_layout.hpp>

#include <array>
#include <cstdint>
#include <limits>
#include <span>

#include "layout/layout_cases.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

constexpr index_t huge = std::numeric_limits<index_t>::max();

/// Compares every accessor with the plain lists of lengths that the layout was made from.
void check_layout(const block_layout& layout, const std::vector<std::vector<index_t>>& sequences) {
  index_t token = 0;
  index_t block = 0;
  REQUIRE(layout.sequences() == static_cast<index_t>(sequences.size()));
  for (index_t s = 0; s < layout.sequences(); ++s) {
    const std::vector<index_t>& lengths = sequences[static_cast<std::size_t>(s)];
    const index_t first_token = token;
    const index_t first_block = block;
    for (std::size_t i = 0; i < lengths.size(); ++i, ++block) {
      REQUIRE(layout.block(block) == index_range{token, token + lengths[i]});
      REQUIRE(layout.sequence_of_block(block) == s);
      REQUIRE(layout.is_final(block) == (i + 1 == lengths.size()));
      REQUIRE(layout.sink_tokens(block).empty());
      REQUIRE(layout.content_tokens(block) == layout.block(block));
      REQUIRE_FALSE(layout.is_shared_sink_block(block));
      for (index_t end = token + lengths[i]; token < end; ++token) {
        REQUIRE(layout.block_of(token) == block);
        REQUIRE(layout.sequence_of(token) == s);
        REQUIRE(layout.source_of(token) == token);
        REQUIRE(layout.token_of(token) == token);
        REQUIRE_FALSE(layout.is_sink(token));
      }
    }
    REQUIRE(layout.sequence_blocks(s) == index_range{first_block, block});
    REQUIRE(layout.sequence_tokens(s) == index_range{first_token, token});
    if (lengths.empty()) {
      REQUIRE_THROWS_WITH(layout.final_block(s),
                          contains("final_block") && contains("has 0 blocks"));
    } else {
      REQUIRE(layout.final_block(s) == block - 1);
    }
  }
  REQUIRE(layout.tokens() == token);
  REQUIRE(layout.source_tokens() == token);
  REQUIRE(layout.blocks() == block);
  REQUIRE_FALSE(layout.has_sinks());
  REQUIRE(layout.sink_options().tokens_per_block == 0);
}

}  // namespace

TEST_CASE("a default layout has nothing in it") { check_layout(block_layout(), {}); }

TEST_CASE("from_sequence names the final block") {
  const auto layout = block_layout::from_sequence({.context = {512, 300}, .final_block = 64});
  CHECK(layout.tokens() == 876);
  CHECK(layout.block(1) == index_range{512, 812});
  CHECK(layout.final_block(0) == 2);
  CHECK(layout.is_final(2));
  CHECK_FALSE(layout.is_final(1));
  const auto blind = block_layout::from_sequence({.context = {2, 3}, .final_block = 0});
  CHECK(blind.blocks() == 3);
  CHECK(blind.final_block(0) == 2);
}

TEST_CASE("blocks without a name for the final one have none until it is declared") {
  const auto check = [](const block_layout& layout) {
    CHECK(layout.tokens() == 6);
    CHECK(layout.blocks() == 3);
    CHECK_FALSE(layout.has_final_block(0));
    CHECK_FALSE(layout.is_final(2));
    CHECK_THROWS_WITH(layout.final_block(0), contains("sequence 0 has 3 blocks and none of them"));
    CHECK(with_final_block(layout).final_block(0) == 2);
    CHECK(with_final_block(layout).has_final_block(0));
    CHECK_THROWS_WITH(layout.has_final_block(1), contains("sequence is 1"));
  };
  check(block_layout::from_lengths({1, 2, 3}));
  check(block_layout::from_lengths(std::vector<int>{1, 2, 3}));
  check(block_layout::from_lengths(std::array<unsigned short, 3>{1, 2, 3}));
  check(block_layout::from_lengths(std::span<const index_t>(std::array<index_t, 3>{1, 2, 3})));
  const std::size_t last = 3;
  check(block_layout::from_lengths({std::size_t{1}, std::size_t{2}, last}));
  check(block_layout::from_lengths({last - 2, last - 1, last}));
  check(block_layout::from_offsets({0, 1, 3, 6}));
  check(block_layout::from_offsets(std::vector<std::int32_t>{0, 1, 3, 6}));
}

TEST_CASE("the final block has to be given a length that can be counted") {
  static_assert(!std::is_default_constructible_v<block_length>);
  CHECK(block_layout::from_lengths({}).blocks() == 0);
  const std::size_t final_tokens = 5;
  CHECK(block_layout::from_sequence({.context = {}, .final_block = final_tokens}).tokens() == 5);
  CHECK_THROWS_WITH(block_layout::from_sequence({.context = {1}, .final_block = ~std::uint64_t{0}}),
                    contains("final_block is -1"));
}

TEST_CASE("packing keeps which sequences have a final block") {
  const std::array parts = {block_layout::from_lengths({2, 1}),
                            block_layout::from_sequence({.context = {2}, .final_block = 1})};
  const auto packed = pack_sequences(parts);
  CHECK_FALSE(packed.has_final_block(0));
  CHECK(packed.has_final_block(1));
  CHECK(with_final_block(packed).has_final_block(0));
}

TEST_CASE("every small layout from lengths and from offsets") {
  for_each_lengths(4, 3, [](const std::vector<index_t>& lengths) {
    CAPTURE(lengths);
    check_layout(with_final_block(block_layout::from_lengths(lengths)), {lengths});
    if (!lengths.empty()) {
      const std::vector<index_t> context(lengths.begin(), lengths.end() - 1);
      check_layout(block_layout::from_sequence({.context = context, .final_block = lengths.back()}),
                   {lengths});
    }
    std::vector<index_t> offsets = {0};
    for (const index_t length : lengths) offsets.push_back(offsets.back() + length);
    check_layout(with_final_block(block_layout::from_offsets(offsets)), {lengths});
  });
}

TEST_CASE("packed sequences keep their blocks, empty sequences their number") {
  const auto seed = test_seed(101);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 100; ++round) {
    const auto sequences = random_lengths(random);
    CAPTURE(round, sequences);
    check_layout(packed_layout(sequences), sequences);
    // Packing packs again: parts may hold several sequences.
    const std::array parts = {packed_layout(sequences), block_layout(), packed_layout(sequences)};
    auto twice = sequences;
    twice.insert(twice.end(), sequences.begin(), sequences.end());
    check_layout(pack_sequences(parts), twice);
  }
}

TEST_CASE("block_of finds the non-empty block among empty neighbours") {
  const auto layout = layout_of({0, 0, 2, 0, 0, 1, 0});
  CHECK(layout.block_of(0) == 2);
  CHECK(layout.block_of(1) == 2);
  CHECK(layout.block_of(2) == 5);
  CHECK(layout.is_final(6));
  CHECK_FALSE(layout.is_final(5));
}

TEST_CASE("bad lengths and offsets are refused with their place and value") {
  CHECK_THROWS_WITH(layout_of({4, 1, -3}), contains("lengths[2] is -3"));
  CHECK_THROWS_WITH(block_layout::from_sequence({.context = {4, -1}, .final_block = 1}),
                    contains("context[1] is -1"));
  CHECK_THROWS_WITH(block_layout::from_sequence({.context = {4}, .final_block = -1}),
                    contains("final_block is -1"));
  CHECK_THROWS_WITH(block_layout::from_sequence({.context = {4}, .final_block = max_axis_tokens}),
                    contains("block 1 ends after token 2147483648"));
  CHECK_THROWS_WITH(layout_of({max_axis_tokens, 1}), contains("block 1") && contains("2147483648"));
  CHECK_THROWS_WITH(layout_of({1, huge}), contains("block 1"));
  CHECK(layout_of({max_axis_tokens, 0}).tokens() == max_axis_tokens);
  CHECK_THROWS_WITH(block_layout::from_offsets(index_list()), contains("offsets is empty"));
  CHECK_THROWS_WITH(block_layout::from_offsets(std::array<index_t, 2>{1, 4}),
                    contains("offsets[0] is 1"));
  CHECK_THROWS_WITH(block_layout::from_offsets(std::array<index_t, 3>{0, 4, 3}),
                    contains("offsets[2] is 3") && contains("offsets[1] which is 4"));
  CHECK_THROWS_WITH(block_layout::from_offsets(std::array<index_t, 2>{0, huge}),
                    contains("from_offsets"));
  const std::array parts = {layout_of({max_axis_tokens}), layout_of({1})};
  CHECK_THROWS_WITH(pack_sequences(parts), contains("pack_sequences"));
}

TEST_CASE("accessors refuse an index outside its range") {
  const auto layout = layout_of({2, 3});
  for (const index_t block : {index_t{-1}, index_t{2}, huge}) {
    CAPTURE(block);
    CHECK_THROWS_WITH(layout.block(block),
                      contains("block is " + std::to_string(block)) && contains("[0, 2)"));
    CHECK_THROWS_AS(layout.sequence_of_block(block), error);
    CHECK_THROWS_AS(layout.is_final(block), error);
    CHECK_THROWS_AS(layout.source_range(block), error);
    CHECK_THROWS_AS(layout.sink_tokens(block), error);
    CHECK_THROWS_AS(layout.content_tokens(block), error);
  }
  for (const index_t token : {index_t{-1}, index_t{5}, huge}) {
    CAPTURE(token);
    CHECK_THROWS_WITH(layout.block_of(token),
                      contains("token is " + std::to_string(token)) && contains("[0, 5)"));
    CHECK_THROWS_AS(layout.sequence_of(token), error);
    CHECK_THROWS_AS(layout.is_sink(token), error);
    CHECK_THROWS_AS(layout.source_of(token), error);
    CHECK_THROWS_AS(layout.token_of(token), error);
  }
  CHECK_THROWS_WITH(layout.sequence_blocks(1), contains("sequence is 1") && contains("[0, 1)"));
  CHECK_THROWS_AS(layout.sequence_tokens(-1), error);
  CHECK_THROWS_AS(layout.final_block(1), error);
  CHECK_THROWS_AS(block_layout().block_of(0), error);
}

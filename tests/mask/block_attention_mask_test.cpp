// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>

#include <array>

#include "layout/layout_cases.hpp"
#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

constexpr sink_visibility every_visibility[] = {
    sink_visibility::own, sink_visibility::own_and_final, sink_visibility::all};

/// The written predicate, token by token.
void check_block_attention(const block_layout& layout) {
  for (const sink_visibility visibility : every_visibility) {
    CAPTURE(static_cast<int>(visibility));
    const auto visible = [&](index_t i, index_t j) {
      const index_t row = layout.block_of(i);
      const index_t column = layout.block_of(j);
      if (j > i || layout.sequence_of(i) != layout.sequence_of(j)) return false;
      if (row == column || layout.is_shared_sink_block(column)) return true;
      if (!layout.is_sink(j)) return layout.is_final(row);
      return visibility == sink_visibility::all ||
             (visibility == sink_visibility::own_and_final && layout.is_final(row));
    };
    const auto mask = block_attention_mask(layout, {.sink_visibility = visibility});
    check_mask(mask, layout.tokens(), layout.tokens(), visible);
    REQUIRE(static_cast<index_t>(mask.slices().size()) <= 3 * layout.blocks());
  }
}

}  // namespace

TEST_CASE("the golden pictures of block attention") {
  CHECK(picture(block_attention_mask(layout_of({1, 2, 1}))) == "x...\n.x..\n.xx.\nxxxx\n");
  // Block-Attention's docstring: local blocks [1, 2], global block 1.
  CHECK(picture(block_attention_mask(layout_of({1, 2, 1}), {})) ==
        "x...\n"
        ".x..\n"
        ".xx.\n"
        "xxxx\n");
}

TEST_CASE("block attention needs to know the final block") {
  const auto unnamed = block_layout::from_lengths({1, 2, 1});
  CHECK_THROWS_WITH(block_attention_mask(unnamed),
                    contains("block_attention_mask: sequence 0 has 3 blocks and none of them"));
  const std::array parts = {layout_of({2}), layout_of({}), unnamed};
  CHECK_THROWS_WITH(block_attention_mask(pack_sequences(parts)),
                    contains("sequence 2 has 3 blocks"));
  CHECK_THROWS_WITH(block_attention_mask(with_sink_tokens(unnamed, {})), contains("sequence 0"));
  CHECK(block_attention_mask(block_layout::from_sequence({.context = {1, 2}, .final_block = 1}))
            .slices() == block_attention_mask(layout_of({1, 2, 1})).slices());
}

TEST_CASE("the golden pictures of sink visibility") {
  const auto layout = with_sink_tokens(layout_of({1, 1, 1}), {.tokens_per_block = 1});
  CHECK(picture(block_attention_mask(layout, {.sink_visibility = sink_visibility::own})) ==
        "x.....\n"
        "xx....\n"
        "..x...\n"
        "..xx..\n"
        ".x.xx.\n"
        ".x.xxx\n");
  CHECK(picture(block_attention_mask(layout)) ==
        "x.....\n"
        "xx....\n"
        "..x...\n"
        "..xx..\n"
        "xxxxx.\n"
        "xxxxxx\n");
  CHECK(picture(block_attention_mask(layout, {.sink_visibility = sink_visibility::all})) ==
        "x.....\n"
        "xx....\n"
        "x.x...\n"
        "x.xx..\n"
        "xxxxx.\n"
        "xxxxxx\n");
  const auto shared = with_sink_tokens(layout_of({1, 1, 1}),
                                       {.tokens_per_block = 1, .sharing = sink_sharing::shared});
  for (const sink_visibility visibility : every_visibility) {
    CHECK(picture(block_attention_mask(shared, {.sink_visibility = visibility})) ==
          "x...\n"
          "xx..\n"
          "x.x.\n"
          "xxxx\n");
  }
}

TEST_CASE("every small layout with every kind of sinks") {
  for_each_lengths(3, 2, [](const std::vector<index_t>& lengths) {
    CAPTURE(lengths);
    const block_layout layout = layout_of(lengths);
    check_block_attention(layout);
    for (const index_t count : {1, 2}) {
      CAPTURE(count);
      check_block_attention(with_sink_tokens(layout, {.tokens_per_block = count}));
      check_block_attention(with_sink_tokens(
          layout, {.tokens_per_block = count, .placement = sink_placement::block_end}));
      check_block_attention(
          with_sink_tokens(layout, {.tokens_per_block = count, .sharing = sink_sharing::shared}));
    }
  });
}

TEST_CASE("packed ragged sequences with every kind of sinks") {
  const auto seed = test_seed(203);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 20; ++round) {
    const auto sequences = random_lengths(random, 4);
    CAPTURE(round, sequences);
    const block_layout layout = packed_layout(sequences);
    const index_t count = random.integer(1, 3);
    check_block_attention(layout);
    check_block_attention(with_sink_tokens(layout, {.tokens_per_block = count}));
    check_block_attention(with_sink_tokens(
        layout, {.tokens_per_block = count, .placement = sink_placement::block_end}));
    check_block_attention(
        with_sink_tokens(layout, {.tokens_per_block = count, .sharing = sink_sharing::shared}));
  }
}

TEST_CASE("identities of block attention") {
  // One block is causal, as are empty blocks before it.
  CHECK(block_attention_mask(layout_of({7})).slices() == causal_mask(7).slices());
  CHECK(block_attention_mask(layout_of({0, 0, 7})).slices() == causal_mask(7).slices());
  // Blocks of length 1 see only themselves, except the final one.
  CHECK(picture(block_attention_mask(layout_of({1, 1, 1, 1}))) == "x...\n.x..\n..x.\nxxxx\n");
  // An empty final block leaves the block-diagonal.
  CHECK(picture(block_attention_mask(layout_of({1, 2, 0}))) == "x..\n.x.\n.xx\n");
  // Sinks at the start that the final block sees are tokens of a longer block.
  const auto sinks = with_sink_tokens(layout_of({2, 0, 3}), {.tokens_per_block = 2});
  CHECK(block_attention_mask(sinks).slices() ==
        block_attention_mask(layout_of({4, 2, 5})).slices());
  CHECK(block_attention_mask(block_layout()).slices().empty());
}

TEST_CASE("a number that is no sink_visibility is refused") {
  CHECK_THROWS_WITH(
      block_attention_mask(layout_of({1, 1}), {.sink_visibility = static_cast<sink_visibility>(3)}),
      contains("sink_visibility is 3, not one of its enumerators 0 to 2"));
}

TEST_CASE("visible pairs of long inputs") {
  const auto pairs = [](index_t blocks, index_t final_length) {
    std::vector<index_t> lengths(static_cast<std::size_t>(blocks), 512);
    lengths.push_back(final_length);
    return visible_pairs(block_attention_mask(layout_of(lengths)));
  };
  CHECK(pairs(63, 512) == 24'920'064);
  CHECK(pairs(64, 512) == 25'313'536);
  CHECK(pairs(64, 128) == 12'607'552);
  CHECK(pairs(64, 50) == 10'044'667);
  CHECK(pairs(64, 1) == 8'437'761);
}

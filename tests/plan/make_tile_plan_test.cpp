// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/gather_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include "plan/plan_masks.hpp"
#include "plan/tile_plan_law.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

namespace {

/// The law for every tile shape up to 5 x 5, both directions.
void check_all_shapes(const attention_mask& mask) {
  for (index_t queries = 1; queries <= 5; ++queries) {
    for (index_t keys = 1; keys <= 5; ++keys) {
      const std::string broken =
          broken_law(mask, make_tile_plan(mask, {queries, keys}, {.transposed = true}));
      if (broken.empty()) continue;
      CAPTURE(queries, keys, mask.query_tokens(), mask.key_tokens(), mask.slices().size());
      FAIL(broken);
    }
  }
  SUCCEED();
}

/// Every way to cut `tokens` into blocks, as lengths; bit t of the number cuts after token t.
std::vector<index_t> composition(index_t tokens, index_t number) {
  std::vector<index_t> lengths;
  for (index_t begin = 0, t = 0; t < tokens; ++t) {
    if (t + 1 < tokens && (number >> t & 1) == 0) continue;
    lengths.push_back(t + 1 - begin);
    begin = t + 1;
  }
  return lengths;
}

std::string message_of(const attention_mask& mask, const tile_shape& shape) {
  try {
    make_tile_plan(mask, shape);
  } catch (const error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("tile plans obey the law for every small block layout", "[plan]") {
  for (index_t tokens = 0; tokens <= 7; ++tokens) {
    for (index_t number = 0; number < (index_t{1} << std::max<index_t>(tokens - 1, 0)); ++number) {
      const std::vector<index_t> lengths = composition(tokens, number);
      CAPTURE(tokens, number);
      check_all_shapes(blocks(lengths));
      check_all_shapes(block_causal(lengths));
    }
  }
}

TEST_CASE("tile plans obey the law with empty blocks", "[plan]") {
  check_all_shapes(blocks({}));
  check_all_shapes(blocks({0}));
  check_all_shapes(blocks({0, 4, 0, 0, 3, 0}));
  check_all_shapes(blocks({3, 0, 5}));
}

TEST_CASE("tile plans obey the law for causal and sliding windows", "[plan]") {
  for (index_t tokens = 0; tokens <= 13; ++tokens) {
    CAPTURE(tokens);
    check_all_shapes(causal(tokens));
    for (index_t width = 1; width <= tokens + 1; ++width) check_all_shapes(window(tokens, width));
  }
}

TEST_CASE("tile plans obey the law for every rectangle and band on 4 x 5 tokens", "[plan]") {
  for (index_t lower = -4; lower <= 5; ++lower) {
    for (index_t upper = lower; upper <= 5; ++upper) {
      for (index_t query = 0; query < 4; ++query) {
        for (index_t key = 0; key < 5; ++key) {
          const slice s = {{query, 4}, {key, 5}, lower, upper};
          const slice mirrored = {{0, 4 - query}, {0, 5 - key}, lower, upper};
          check_all_shapes(attention_mask::from_disjoint_slices(4, 5, {s}));
          check_all_shapes(attention_mask::from_disjoint_slices(4, 5, {mirrored}));
        }
      }
    }
  }
}

TEST_CASE("tile plans obey the law for random rectangles and bands", "[plan]") {
  const std::uint64_t seed = test_seed(20240521);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 300; ++round) {
    CAPTURE(round);
    random_masks draw(random, random.chance(0.5) ? 0.95 : 0.5);
    check_all_shapes(draw(random.integer(0, 12), random.integer(0, 12), 3));
  }
}

TEST_CASE("tile plans obey the law for larger random masks and shapes", "[plan]") {
  const std::uint64_t seed = test_seed(77);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    random_masks draw(random, random.chance(0.5) ? 0.95 : 0.4);
    const attention_mask mask = draw(random.integer(1, 150), random.integer(1, 150), 6);
    const tile_shape shape = {random.integer(1, 40), random.integer(1, 160)};
    CAPTURE(round, shape.queries, shape.keys);
    REQUIRE(broken_law(mask, make_tile_plan(mask, shape, {.transposed = true})) == "");
    REQUIRE(broken_law(mask, make_tile_plan(mask, shape)) == "");
  }
}

TEST_CASE("tile plans obey the law for blocks with sinks that others see", "[plan]") {
  const std::uint64_t seed = test_seed(4711);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 80; ++round) {
    std::vector<index_t> lengths(static_cast<std::size_t>(random.integer(1, 12)));
    for (index_t& length : lengths) length = random.integer(0, 12);
    const index_t sinks = random.integer(1, 5);
    const auto placement =
        random.chance(0.5) ? sink_placement::block_start : sink_placement::block_end;
    const block_layout layout =
        with_sink_tokens(with_final_block(block_layout::from_lengths(lengths)),
                         {.tokens_per_block = sinks, .placement = placement});
    // Tiles that hold one sink or many, and axes of N - 1, N and N + 1 tokens for tiles of N.
    const index_t side = std::max<index_t>(1, layout.tokens() + random.integer(-1, 1));
    for (const tile_shape& shape :
         {tile_shape{1, 1}, tile_shape{4, 16}, tile_shape{16, 4}, tile_shape{side, 3},
          tile_shape{3, side}, tile_shape{random.integer(1, 20), random.integer(1, 20)}}) {
      for (const auto visible :
           {sink_visibility::own, sink_visibility::own_and_final, sink_visibility::all}) {
        CAPTURE(round, sinks, shape.queries, shape.keys, visible);
        const attention_mask mask = block_attention_mask(layout, {.sink_visibility = visible});
        REQUIRE(broken_law(mask, make_tile_plan(mask, shape, {.transposed = true})) == "");
      }
    }
  }
}

TEST_CASE("tile plans obey the law for block dropout draws", "[plan]") {
  const std::uint64_t seed = test_seed(99);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    std::vector<index_t> lengths(static_cast<std::size_t>(random.integer(1, 14)));
    for (index_t& length : lengths) length = random.integer(0, 11);
    block_layout layout = with_final_block(block_layout::from_lengths(lengths));
    if (random.chance(0.5)) layout = with_sink_tokens(layout, {.tokens_per_block = 2});
    for (const auto rule : {block_dropout_rule::hide_pairs, block_dropout_rule::global_blocks,
                            block_dropout_rule::random_final}) {
      const attention_mask mask = block_dropout_mask(
          layout, {.rule = rule,
                   .keep_probability = random.chance(0.2) ? 1 : random.real(0, 1),
                   .seed = static_cast<std::uint64_t>(round),
                   .sink_visibility =
                       random.chance(0.5) ? sink_visibility::all : sink_visibility::own_and_final});
      const tile_shape shape = {random.integer(1, 24), random.integer(1, 24)};
      CAPTURE(round, rule, shape.queries, shape.keys);
      REQUIRE(broken_law(mask, make_tile_plan(mask, shape, {.transposed = true})) == "");
    }
  }
}

TEST_CASE("tile plans obey the law for gathered rows and columns", "[plan]") {
  const std::uint64_t seed = test_seed(512);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 80; ++round) {
    const index_t tokens = random.integer(1, 90);
    const auto picked = [&](double share) {
      std::vector<index_t> index;
      for (index_t token = 0; token < tokens; ++token) {
        if (random.chance(share)) index.push_back(token);
      }
      return index;
    };
    const attention_mask whole =
        random.chance(0.5) ? causal(tokens) : window(tokens, random.integer(1, tokens));
    const auto rows = picked(random.real(0.1, 1));
    const attention_mask mask = random.chance(0.5)
                                    ? gather_queries(whole, rows)
                                    : gather_mask(whole, rows, picked(random.real(0.1, 1)));
    const tile_shape shape = {random.integer(1, 24), random.integer(1, 24)};
    CAPTURE(round, tokens, shape.queries, shape.keys);
    REQUIRE(broken_law(mask, make_tile_plan(mask, shape, {.transposed = true})) == "");
  }
}

TEST_CASE("slices that together fill a tile make it full", "[plan]") {
  // The rows 0..3 of a tile are split between two slices, the keys 4..7 between two bands.
  const auto mask = attention_mask::from_disjoint_slices(4, 12,
                                                         {{{0, 1}, {0, 4}},
                                                          {{1, 4}, {0, 4}},
                                                          {{0, 4}, {4, 8}, no_lower_diagonal, 4},
                                                          {{0, 4}, {4, 8}, 5, no_upper_diagonal},
                                                          {{0, 4}, {8, 12}}});
  const tile_plan plan = make_tile_plan(mask, {4, 4});
  REQUIRE(plan.by_query().spans.size() == 1);
  CHECK(plan.by_query().spans[0].inner_end == 3);
  CHECK(plan.by_query().slice_ids.empty());
  CHECK(plan.statistics().full_tiles == 3);
}

TEST_CASE("the work does not grow with the area", "[plan]") {
  // Two row halves fill 2^29 tiles of one outer tile; visiting them one by one would take seconds.
  const index_t keys = index_t{1} << 40;
  const auto mask =
      attention_mask::from_disjoint_slices(64, keys, {{{0, 31}, {0, keys}}, {{31, 64}, {0, keys}}});
  const tile_plan plan = make_tile_plan(mask, {64, 2048});
  REQUIRE(plan.by_query().spans.size() == 1);
  CHECK(plan.statistics().full_tiles == keys / 2048);
  CHECK(plan.statistics().visible_pairs == 64 * keys);
  CHECK(plan.statistics().tile_area == 64 * keys);
}

TEST_CASE("32K tokens in 64 blocks: the counts of the design note", "[plan]") {
  const tile_plan full = make_tile_plan(causal(32768), {128, 128});
  CHECK(full.statistics().visible_pairs == 536'887'296);
  CHECK(full.statistics().partial_tiles == 256);
  CHECK(full.statistics().full_tiles == 256 * 255 / 2);
  CHECK(full.by_query().order.front() == 255);

  // A: 64 blocks of 512, the last one final. Each context block has 4 diagonal and 6 full tiles.
  const tile_plan a = make_tile_plan(blocks(std::vector<index_t>(64, 512)), {128, 128});
  CHECK(a.statistics().visible_pairs == 24'920'064);
  CHECK(a.statistics().partial_tiles == 64 * 4);
  CHECK(a.statistics().full_tiles == 64 * 6 + 4 * 63 * 4);
  CHECK(a.statistics().empty_tiles == 256 * 256 - 64 * 10 - 4 * 63 * 4);
  CHECK(a.statistics().tile_area == (64 * 10 + 4 * 63 * 4) * 128 * 128);
  CHECK(a.seen_keys() == std::vector<index_range>{{0, 32768}});

  // B: 64 context blocks of 512 and a final block of 512, tiles wider than high.
  const tile_plan b = make_tile_plan(blocks(std::vector<index_t>(65, 512)), {64, 256});
  CHECK(b.statistics().visible_pairs == 25'313'536);
  CHECK(b.statistics().partial_tiles == 65 * 8);
  CHECK(b.statistics().full_tiles == 65 * 4 + 8 * 64 * 2);
  CHECK(b.by_query().tile_count.back() == 65 * 2);
}

TEST_CASE("make_tile_plan refuses what a plan cannot hold", "[plan]") {
  CHECK(message_of(causal(4), {0, 4}) ==
        "make_tile_plan: shape.queries is 0, must be in [1, 2147483648)");
  CHECK(message_of(causal(4), {4, -3}) ==
        "make_tile_plan: shape.keys is -3, must be in [1, 2147483648)");
  CHECK(message_of(causal(4), {index_t{1} << 31, 4}) ==
        "make_tile_plan: shape.queries is 2147483648, must be in [1, 2147483648)");
  CHECK(message_of(causal(4), {2147483647, 2147483647}) == "");

  const auto wide = attention_mask::from_disjoint_slices(1, 2147483648, {});
  CHECK(message_of(wide, {1, 1}) ==
        "make_tile_plan: mask.key_tokens() is 2147483648, more than 2147483647 tiles of shape.keys "
        "= 1");
  CHECK(message_of(wide, {1, 2}) == "");
  const auto high = attention_mask::from_disjoint_slices(4294967296, 1, {});
  CHECK(message_of(high, {2, 1}) ==
        "make_tile_plan: mask.query_tokens() is 4294967296, more than 2147483647 tiles of "
        "shape.queries = 2");
  const auto huge = attention_mask::from_disjoint_slices(4294967296, 4294967296, {});
  CHECK(message_of(huge, {1 << 30, 1 << 30}) ==
        "make_tile_plan: mask.query_tokens() x mask.key_tokens() is 4294967296 x 4294967296, its "
        "pairs cannot be counted in 64 bits");

  // A half-seen row of 2^31 - 1 tiles is one span with two ids.
  const index_t keys = 2147483647;
  const auto one_span =
      attention_mask::from_disjoint_slices(3, keys, {{{0, 1}, {0, keys}}, {{1, 2}, {0, keys}}});
  const tile_plan plan = make_tile_plan(one_span, {3, 1});
  CHECK(plan.statistics().partial_tiles == keys);
  CHECK(plan.by_query().spans.size() == 1);
  CHECK(plan.by_query().slice_ids == std::vector<std::int32_t>{0, 1});
}

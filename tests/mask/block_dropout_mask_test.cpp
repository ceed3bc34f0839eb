// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/packed_documents_mask.hpp>

#include <cmath>

#include "layout/layout_cases.hpp"
#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

using rule = block_dropout_rule;

constexpr rule every_rule[] = {rule::hide_pairs, rule::hide_context, rule::global_blocks,
                               rule::random_final};
constexpr sink_visibility every_visibility[] = {
    sink_visibility::own, sink_visibility::own_and_final, sink_visibility::all};

/// The layout as it is and with every kind of sinks.
std::vector<block_layout> with_every_sinks(const block_layout& layout, index_t count) {
  return {
      layout, with_sink_tokens(layout, {.tokens_per_block = count}),
      with_sink_tokens(layout, {.tokens_per_block = count, .placement = sink_placement::block_end}),
      with_sink_tokens(layout, {.tokens_per_block = count, .sharing = sink_sharing::shared})};
}

/// The block's number without shared sink sets.
index_t source_number(const block_layout& layout, index_t block) {
  index_t number = 0;
  for (index_t b = 0; b < block; ++b) number += layout.is_shared_sink_block(b) ? 0 : 1;
  return number;
}

/// Block `b` sees the earlier block `c` of its sequence, by the words of block_dropout_rule.
bool sees(const block_layout& layout,
          const block_dropout_options& options,
          index_t final_block,
          index_t b,
          index_t c) {
  const index_t row = source_number(layout, b);
  const bool is_final = b == final_block;
  const bool kept = blockattn::detail::draws_kept(options, row, source_number(layout, c));
  switch (options.rule) {
    case rule::hide_pairs:
      return kept || (is_final && options.exempt_final_block);
    case rule::hide_context:
      return is_final && kept;
    case rule::global_blocks:
      return is_final || !blockattn::detail::draws_kept(options, row, row);
    default:
      return is_final;
  }
}

/// The written predicate, token by token.
void check_block_dropout(const block_layout& layout, const block_dropout_options& options) {
  CAPTURE(static_cast<int>(options.rule), options.keep_probability, options.seed,
          static_cast<int>(options.sink_visibility), options.exempt_final_block);
  const block_dropout_draw draw = draw_block_dropout(layout, options);
  REQUIRE(std::ssize(draw.final_blocks) == layout.sequences());
  for (index_t s = 0; s < layout.sequences(); ++s) {
    const index_range blocks = layout.sequence_blocks(s);
    const index_t final_block = draw.final_blocks[static_cast<std::size_t>(s)];
    if (blocks.empty() || options.rule != rule::random_final) {
      REQUIRE(final_block == (blocks.empty() ? -1 : blocks.end - 1));
    } else {
      REQUIRE(blocks.contains(final_block));
      REQUIRE((final_block == blocks.end - 1 || !layout.source_range(final_block).empty()));
    }
  }
  const auto final_block_of = [&](index_t block) {
    return draw.final_blocks[static_cast<std::size_t>(layout.sequence_of_block(block))];
  };
  check_mask(draw.mask, layout.tokens(), layout.tokens(), [&](index_t i, index_t j) {
    const index_t b = layout.block_of(i);
    const index_t c = layout.block_of(j);
    const index_t final_block = final_block_of(b);
    if (j > i || layout.sequence_of(i) != layout.sequence_of(j) || b > final_block) return false;
    if (b == c || layout.is_shared_sink_block(c)) return true;
    if (layout.is_sink(j) && options.sink_visibility == sink_visibility::own) return false;
    if (layout.is_sink(j) && options.sink_visibility == sink_visibility::all) return true;
    return sees(layout, options, final_block, b, c);
  });
  REQUIRE(std::ssize(draw.loss_tokens) == layout.tokens());
  for (index_t i = 0; i < layout.tokens(); ++i) {
    const index_t b = layout.block_of(i);
    const bool global_block =
        options.rule == rule::global_blocks &&
        !blockattn::detail::draws_kept(options, source_number(layout, b), source_number(layout, b));
    const bool learns = options.rule == rule::hide_pairs || b == final_block_of(b) || global_block;
    CAPTURE(i);
    REQUIRE((draw.loss_tokens[static_cast<std::size_t>(i)] != 0) == (learns && !layout.is_sink(i)));
  }
}

/// Both ends of every rule, against the masks that exist.
void check_ends(const block_layout& layout) {
  const auto text = [&](rule which, double keep, bool exempt = false) {
    return picture(block_dropout_mask(
        layout,
        {.rule = which, .keep_probability = keep, .seed = 9, .exempt_final_block = exempt}));
  };
  const auto causal = picture(packed_documents_mask(layout, document_attention::causal));
  const auto block_attention = picture(block_attention_mask(layout));
  const auto block_diagonal =
      picture_of(layout.tokens(), layout.tokens(), [&](index_t i, index_t j) {
        const index_t c = layout.block_of(j);
        return j <= i && layout.sequence_of(i) == layout.sequence_of(j) &&
               (layout.block_of(i) == c || layout.is_shared_sink_block(c));
      });
  REQUIRE(text(rule::hide_pairs, 1) == causal);
  REQUIRE(text(rule::hide_pairs, 0) == block_diagonal);
  REQUIRE(text(rule::hide_pairs, 1, true) == causal);
  REQUIRE(text(rule::hide_pairs, 0, true) == block_attention);
  REQUIRE(text(rule::hide_context, 1) == block_attention);
  REQUIRE(text(rule::hide_context, 0) == block_diagonal);
  REQUIRE(text(rule::global_blocks, 1) == block_attention);
  REQUIRE(text(rule::global_blocks, 0) == causal);
  REQUIRE(text(rule::random_final, 1) == block_attention);
  for (const sink_visibility visibility : every_visibility) {
    for (const rule which : {rule::hide_context, rule::global_blocks, rule::random_final}) {
      REQUIRE(picture(block_dropout_mask(layout, {.rule = which, .sink_visibility = visibility})) ==
              picture(block_attention_mask(layout, {.sink_visibility = visibility})));
    }
  }
}

/// |count - n p| in standard deviations of a binomial count.
double deviation(double count, double n, double p) {
  return std::abs(count - n * p) / std::sqrt(n * p * (1 - p));
}

}  // namespace

TEST_CASE("golden draws: seed 353 over blocks [1, 2, 1, 1] and the final block [2]") {
  // Drawn by another program from the definition of Philox 4x32-10.
  const auto text = [](rule which, bool exempt = false) {
    return picture(block_dropout_mask(
        layout_of({1, 2, 1, 1, 2}),
        {.rule = which, .keep_probability = 0.5, .seed = 353, .exempt_final_block = exempt}));
  };
  CHECK(text(rule::hide_pairs) ==
        "x......\n"
        ".x.....\n"
        ".xx....\n"
        "x..x...\n"
        "....x..\n"
        "...xxx.\n"
        "...xxxx\n");
  CHECK(text(rule::hide_pairs, true) ==
        "x......\n"
        ".x.....\n"
        ".xx....\n"
        "x..x...\n"
        "....x..\n"
        "xxxxxx.\n"
        "xxxxxxx\n");
  CHECK(text(rule::hide_context) ==
        "x......\n"
        ".x.....\n"
        ".xx....\n"
        "...x...\n"
        "....x..\n"
        "...xxx.\n"
        "...xxxx\n");
  CHECK(text(rule::global_blocks) ==
        "x......\n"
        "xx.....\n"
        "xxx....\n"
        "...x...\n"
        "xxxxx..\n"
        "xxxxxx.\n"
        "xxxxxxx\n");
  CHECK(text(rule::random_final) ==
        "x......\n"
        ".x.....\n"
        ".xx....\n"
        "xxxx...\n"
        ".......\n"
        ".......\n"
        ".......\n");
}

TEST_CASE("golden draw of two sequences: blocks are numbered over the layout") {
  const block_dropout_options options = {.keep_probability = 0.5, .seed = 77};
  const block_layout layout = packed_layout({{1, 1, 1}, {1, 1}});
  CHECK(picture(block_dropout_mask(layout, options)) ==
        "x....\n"
        ".x...\n"
        "x.x..\n"
        "...x.\n"
        "...xx\n");
  // Shared sinks do not change who sees whom.
  const auto shared =
      with_sink_tokens(layout, {.tokens_per_block = 1, .sharing = sink_sharing::shared});
  CHECK(picture(block_dropout_mask(shared, options)) ==
        "x......\n"
        "xx.....\n"
        "x.x....\n"
        "xx.x...\n"
        "....x..\n"
        "....xx.\n"
        "....xxx\n");
}

TEST_CASE("golden draw with sinks of each block: hidden blocks hide them, or not") {
  const auto layout = with_sink_tokens(layout_of({1, 1, 1}), {.tokens_per_block = 1});
  const auto text = [&](sink_visibility visibility) {
    return picture(block_dropout_mask(
        layout, {.keep_probability = 0.5, .seed = 77, .sink_visibility = visibility}));
  };
  CHECK(text(sink_visibility::own_and_final) ==
        "x.....\n"
        "xx....\n"
        "..x...\n"
        "..xx..\n"
        "xx..x.\n"
        "xx..xx\n");
  CHECK(text(sink_visibility::own) ==
        "x.....\n"
        "xx....\n"
        "..x...\n"
        "..xx..\n"
        ".x..x.\n"
        ".x..xx\n");
  CHECK(text(sink_visibility::all) ==
        "x.....\n"
        "xx....\n"
        "x.x...\n"
        "x.xx..\n"
        "xxx.x.\n"
        "xxx.xx\n");
}

TEST_CASE("the ends of every rule are the masks that exist") {
  for_each_lengths(3, 2, [](const std::vector<index_t>& lengths) {
    CAPTURE(lengths);
    for (const block_layout& layout : with_every_sinks(layout_of(lengths), 1)) check_ends(layout);
  });
  const auto seed = test_seed(232);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 10; ++round) {
    const auto sequences = random_lengths(random, 4);
    CAPTURE(round, sequences);
    for (const auto& layout : with_every_sinks(packed_layout(sequences), random.integer(1, 3))) {
      check_ends(layout);
    }
  }
}

TEST_CASE("packed ragged sequences with every rule and every kind of sinks") {
  const auto seed = test_seed(233);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 25; ++round) {
    const auto sequences = random_lengths(random, 3);
    CAPTURE(round, sequences);
    for (const auto& layout : with_every_sinks(packed_layout(sequences), random.integer(1, 2))) {
      for (const rule which : every_rule) {
        for (const sink_visibility visibility : every_visibility) {
          check_block_dropout(
              layout, {.rule = which,
                       .keep_probability = random.real(0, 1),
                       .seed = random.engine()(),
                       .exempt_final_block = which == rule::hide_pairs && random.chance(0.5),
                       .sink_visibility = visibility});
        }
      }
    }
  }
}

TEST_CASE("visible neighbours are one slice") {
  const block_layout layout = layout_of({3, 4, 5, 6});
  CHECK(block_dropout_mask(layout, {}).slices().size() == 1);
  CHECK(block_dropout_mask(layout, {.rule = rule::global_blocks, .keep_probability = 0})
            .slices()
            .size() == 1);
  CHECK(block_dropout_mask(layout, {.rule = rule::hide_context}).slices() ==
        block_attention_mask(layout).slices());
}

TEST_CASE("rules that give a block the final role need to know it") {
  const auto unnamed = block_layout::from_lengths({2, 3, 1});
  for (const rule which : {rule::hide_context, rule::global_blocks, rule::random_final}) {
    CHECK_THROWS_WITH(draw_block_dropout(unnamed, {.rule = which}),
                      contains("draw_block_dropout: sequence 0 has 3 blocks and none of them"));
  }
  CHECK_THROWS_WITH(draw_block_dropout(unnamed, {.exempt_final_block = true}),
                    contains("sequence 0 has 3 blocks"));
  const block_dropout_options pairs = {.keep_probability = 0.5, .seed = 3};
  const auto draw = draw_block_dropout(unnamed, pairs);
  CHECK(draw.final_blocks == std::vector<index_t>{-1});
  const auto named = draw_block_dropout(with_final_block(unnamed), pairs);
  CHECK(draw.mask.slices() == named.mask.slices());
  CHECK(draw.loss_tokens == named.loss_tokens);
}

TEST_CASE("random_final falls back to the final block when no block holds a source token") {
  const auto sinks = with_sink_tokens(layout_of({0, 0}), {.tokens_per_block = 1});
  const auto draw = draw_block_dropout(sinks, {.rule = rule::random_final, .keep_probability = 0});
  CHECK(draw.final_blocks == std::vector<index_t>{1});
  CHECK(draw.loss_tokens == std::vector<std::uint8_t>{0, 0});
  CHECK(picture(draw.mask) == "x.\nxx\n");
  CHECK(draw_block_dropout(block_layout(), {}).final_blocks.empty());
}

TEST_CASE("pairs are kept as often as they should be, and independently") {
  constexpr int seeds = 20000;
  const block_layout layout = layout_of({1, 1, 1, 1, 1});
  for (const double keep : {0.1, 0.5, 0.8}) {
    CAPTURE(keep);
    std::vector<std::vector<bool>> drawn;
    for (std::uint64_t seed = 0; seed < seeds; ++seed) {
      const auto dense =
          to_dense(block_dropout_mask(layout, {.keep_probability = keep, .seed = seed}));
      std::vector<bool> pairs;
      for (std::size_t b = 0; b < 5; ++b) {
        for (std::size_t c = 0; c < b; ++c) pairs.push_back(dense[b * 5 + c] != 0);
      }
      drawn.push_back(pairs);
    }
    for (std::size_t a = 0; a < 10; ++a) {
      for (std::size_t b = 0; b <= a; ++b) {
        const auto both = std::count_if(drawn.begin(), drawn.end(),
                                        [&](const auto& pairs) { return pairs[a] && pairs[b]; });
        CAPTURE(a, b, both);
        CHECK(deviation(static_cast<double>(both), seeds, a == b ? keep : keep * keep) < 5);
      }
      // Consecutive seeds, as consecutive training steps have them.
      int twice = 0;
      for (std::size_t i = 0; i + 1 < drawn.size(); ++i) twice += drawn[i][a] && drawn[i + 1][a];
      CHECK(deviation(twice, seeds - 1, keep * keep) < 5);
    }
  }
}

TEST_CASE("random_final keeps the final block or draws all alike") {
  constexpr int seeds = 20000;
  const block_layout layout = layout_of({1, 0, 2, 1, 1});  // the empty block is never drawn
  for (const double keep : {0.0, 0.6}) {
    std::vector<int> count(5, 0);
    for (std::uint64_t seed = 0; seed < seeds; ++seed) {
      const auto draw = draw_block_dropout(
          layout, {.rule = rule::random_final, .keep_probability = keep, .seed = seed});
      ++count[static_cast<std::size_t>(draw.final_blocks[0])];
    }
    CAPTURE(keep, count);
    CHECK(count[1] == 0);
    for (const std::size_t b : {0U, 2U, 3U}) CHECK(deviation(count[b], seeds, (1 - keep) / 4) < 5);
    CHECK(deviation(count[4], seeds, keep + (1 - keep) / 4) < 5);
  }
}

TEST_CASE("bad options are refused") {
  CHECK_THROWS_WITH(block_dropout_mask(layout_of({1}), {.keep_probability = 2}),
                    contains("keep_probability is 2"));
}

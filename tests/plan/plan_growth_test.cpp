// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/gather_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include "plan/plan_masks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

// Plans grow with what a mask holds, not with the tiles that it fills: counted, not timed.

namespace {

index_t entries(const tile_lists& lists) {
  return std::ssize(lists.spans) + std::ssize(lists.links) + std::ssize(lists.slice_ids);
}

/// What a plan may be as long as: its slices and its outer tiles.
index_t size_of(const tile_plan& plan) {
  return std::ssize(plan.slices()) + plan.by_query().outer_tiles + plan.by_key().outer_tiles;
}

block_layout with_sinks(index_t blocks, index_t sinks) {
  std::vector<index_t> lengths;
  for (index_t b = 0; b < blocks; ++b) lengths.push_back(300 + 37 * b % 450);
  return with_sink_tokens(with_final_block(block_layout::from_lengths(lengths)),
                          {.tokens_per_block = sinks});
}

std::vector<index_t> picked(index_t tokens, index_t seed, double share) {
  random_source random(static_cast<std::uint64_t>(seed));
  std::vector<index_t> index;
  for (index_t token = 0; token < tokens; ++token) {
    if (share == 0.5 ? token % 2 == 0 : random.chance(share)) index.push_back(token);
  }
  return index;
}

}  // namespace

TEST_CASE("lists grow with the blocks when every later block sees a block's sinks", "[plan]") {
  for (const index_t sinks : {1, 4, 40}) {
    for (const index_t blocks : {100, 200, 400}) {
      const attention_mask mask = block_attention_mask(with_sinks(blocks, sinks),
                                                       {.sink_visibility = sink_visibility::all});
      for (const tile_shape& shape : {tile_shape{64, 256}, tile_shape{128, 128}}) {
        const tile_plan plan = make_tile_plan(mask, shape, {.transposed = true});
        CAPTURE(sinks, blocks, shape.queries, size_of(plan));
        // Partial tiles grow with the square: 400 blocks have about 400,000 of 64 x 256.
        CHECK(plan.statistics().partial_tiles > blocks * blocks);
        CHECK(entries(plan.by_query()) < 5 * size_of(plan));
        CHECK(entries(plan.by_key()) < 5 * size_of(plan));
        CHECK(plan.memory_size() < 160 * size_of(plan));
      }
    }
  }
}

TEST_CASE("1M tokens in 2,000 blocks whose sinks all see take less than 16 MB", "[plan]") {
  std::vector<index_t> lengths(2000, 520);
  const block_layout layout = with_sink_tokens(
      with_final_block(block_layout::from_lengths(lengths)), {.tokens_per_block = 4});
  const tile_plan plan =
      make_tile_plan(block_attention_mask(layout, {.sink_visibility = sink_visibility::all}),
                     {64, 256}, {.transposed = true});
  CHECK(plan.memory_size() < 4'000'000);
}

TEST_CASE("lists of gathered rows grow with the rows, by query and by key", "[plan]") {
  for (const double share : {0.5, 0.15, 0.8}) {
    for (const index_t tokens : {4000, 16000, 64000}) {
      const std::vector<index_t> index = picked(tokens, tokens, share);
      for (const attention_mask& mask :
           {gather_queries(causal(tokens), index), gather_mask(causal(tokens), index, index),
            transposed(gather_queries(causal(tokens), index))}) {
        const tile_plan plan = make_tile_plan(mask, {64, 64}, {.transposed = true});
        CAPTURE(share, tokens, plan.slices().size(), size_of(plan));
        CHECK(entries(plan.by_query()) < 5 * size_of(plan));
        CHECK(entries(plan.by_key()) < 5 * size_of(plan));
        CHECK(plan.memory_size() < 160 * size_of(plan));
      }
    }
  }
}

TEST_CASE("gathered rows change the lists of keys only where they begin and end", "[plan]") {
  // The work of planning: by key, each of the later rows was visited for each key tile.
  for (const double share : {0.5, 0.15, 0.8}) {
    const index_t tokens = 20000;
    const attention_mask by_key =
        transposed(gather_queries(causal(tokens), picked(tokens, 3, share)));
    const detail::tiled_axis keys{by_key.query_tokens(), 64};
    const detail::tiled_axis queries{by_key.key_tokens(), 64};
    detail::slice_visits visits(by_key.slices(), keys, queries);
    index_t changes = 0;
    for (index_t tile = 0; tile < keys.tiles(); ++tile) changes += std::ssize(visits.advance(tile));
    CAPTURE(share, by_key.slices().size());
    CHECK(changes <= 5 * std::ssize(by_key.slices()));
  }
}

TEST_CASE("lists of block dropout grow with the slices, not with the tiles of a block", "[plan]") {
  const block_layout layout = with_sinks(150, 0);
  const attention_mask mask = block_dropout_mask(layout, {.keep_probability = 0.5, .seed = 7});
  for (const tile_shape& shape : {tile_shape{64, 256}, tile_shape{32, 256}, tile_shape{16, 256}}) {
    const tile_plan plan = make_tile_plan(mask, shape, {.transposed = true});
    CAPTURE(shape.queries, plan.slices().size(), size_of(plan));
    CHECK(entries(plan.by_query()) < 14 * size_of(plan));
    CHECK(entries(plan.by_key()) < 14 * size_of(plan));
  }
}

TEST_CASE("a plan knows how many bytes it takes", "[plan]") {
  const tile_plan plan = make_tile_plan(causal(4096), {64, 64}, {.transposed = true});
  const auto bytes_of = [](const tile_lists& lists) {
    return 16 * std::ssize(lists.spans) + 8 * std::ssize(lists.links) +
           4 * (std::ssize(lists.first_span) + std::ssize(lists.first_link) +
                std::ssize(lists.slice_ids) + std::ssize(lists.order)) +
           8 * std::ssize(lists.tile_count);
  };
  const index_t least = bytes_of(plan.by_query()) + bytes_of(plan.by_key()) +
                        static_cast<index_t>(sizeof(slice) + sizeof(index_range));
  CHECK(plan.by_query().memory_size() >= bytes_of(plan.by_query()));
  CHECK(plan.memory_size() >= least + static_cast<index_t>(sizeof(tile_plan)));
  CHECK(plan.memory_size() <= 2 * least + static_cast<index_t>(sizeof(tile_plan)));
  CHECK(make_tile_plan(causal(4096), {64, 64}).memory_size() < plan.memory_size());
  CHECK(tile_plan().memory_size() == static_cast<index_t>(sizeof(tile_plan)));
}

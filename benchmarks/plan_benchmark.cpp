// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
//
// Time to build tile plans, on one core, and the memory that they take. Figures to meet: 32K tokens
// in 64 ragged blocks below 0.5 ms; 1M tokens in 2,000 blocks below 30 ms with both directions,
// also where every later block sees a block's sinks; gathered rows grow with the rows (256K, 512K,
// 1M); a draw of hide_pairs over 2,000 blocks and its plan below 0.3 s.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/gather_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>
#include <random>
#include <vector>

namespace ba = blockattn;

namespace {

enum class direction { by_query, both };

/// Context blocks of 40 to 1400 tokens that add up to what the final block leaves.
ba::block_layout ragged_layout(ba::index_t tokens, ba::index_t blocks, ba::index_t final_block) {
  constexpr ba::index_t shortest = 40;
  constexpr ba::index_t longest = 1400;
  std::mt19937_64 engine(1);
  const auto draw = [&engine](ba::index_t low, ba::index_t high) {
    return std::uniform_int_distribution<ba::index_t>(low, high)(engine);
  };
  std::vector<ba::index_t> lengths;
  ba::index_t rest = tokens - final_block;
  for (ba::index_t left = blocks - 1; left > 0; --left) {
    // Above or below the mean of what is left, with the odds that keep this mean.
    const ba::index_t mean = rest / left;
    const ba::index_t length =
        draw(shortest, longest) >= mean ? draw(shortest, mean) : draw(mean, longest);
    const ba::index_t low = std::max(shortest, rest - (left - 1) * longest);
    const ba::index_t high = std::min(longest, rest - (left - 1) * shortest);
    lengths.push_back(std::clamp(length, low, high));
    rest -= lengths.back();
  }
  lengths.push_back(final_block);
  return ba::with_final_block(ba::block_layout::from_lengths(lengths));
}

ba::attention_mask ragged_blocks(ba::index_t tokens, ba::index_t blocks, ba::index_t final_block) {
  return ba::block_attention_mask(ragged_layout(tokens, blocks, final_block));
}

/// The same, and every later block sees the 4 sinks of each.
ba::attention_mask blocks_seeing_sinks(ba::index_t tokens, ba::index_t blocks) {
  const ba::block_layout layout = ba::with_sink_tokens(
      ragged_layout(tokens - 4 * blocks, blocks, 512), {.tokens_per_block = 4});
  return ba::block_attention_mask(layout, {.sink_visibility = ba::sink_visibility::all});
}

/// Every second row of a causal mask over 2 * rows tokens.
ba::attention_mask gathered_rows(ba::index_t rows) {
  std::vector<ba::index_t> index(static_cast<std::size_t>(rows));
  for (ba::index_t row = 0; row < rows; ++row) index[static_cast<std::size_t>(row)] = 2 * row;
  return ba::gather_queries(ba::causal_mask(2 * rows), index);
}

ba::attention_mask sliding_window(ba::index_t tokens, ba::index_t width) {
  return ba::attention_mask::from_disjoint_slices(
      tokens, tokens,
      {{.queries = {0, tokens}, .keys = {0, tokens}, .lower = 1 - width, .upper = 0}});
}

/// Every block sees all of itself and of the blocks before it (block-causal diffusion): each tile
/// row that holds a boundary is filled by two slices together.
ba::attention_mask block_causal(ba::index_t tokens, ba::index_t blocks) {
  std::vector<ba::slice> slices;
  for (ba::index_t block = 0; block < blocks; ++block) {
    const ba::index_t end = tokens * (block + 1) / blocks;
    slices.push_back({.queries = {tokens * block / blocks, end}, .keys = {0, end}});
  }
  return ba::attention_mask::from_disjoint_slices(tokens, tokens, slices);
}

void plan(benchmark::State& state, const ba::attention_mask& mask, direction asked) {
  const ba::tile_shape shape = {state.range(0), state.range(1)};
  const ba::plan_options options = {.transposed = asked == direction::both};
  for (auto _ : state) benchmark::DoNotOptimize(ba::make_tile_plan(mask, shape, options));

  const ba::tile_plan built = ba::make_tile_plan(mask, shape, options);
  const auto count = [&state](const char* name, auto value) {
    state.counters[name] = static_cast<double>(value);
  };
  count("spans", built.by_query().spans.size() + built.by_key().spans.size());
  count("full", built.statistics().full_tiles);
  count("partial", built.statistics().partial_tiles);
  count("bytes", built.memory_size());
}

/// The draw of a mask and its plan, as one training step needs them.
void draw_and_plan(benchmark::State& state, direction asked) {
  const ba::index_t k = 1024;
  const ba::block_layout layout = ragged_layout(k * k, 2000, 512);
  ba::index_t bytes = 0;
  ba::index_t slices = 0;
  std::uint64_t seed = 0;
  for (auto _ : state) {
    const ba::attention_mask mask =
        ba::block_dropout_mask(layout, {.keep_probability = 0.5, .seed = ++seed});
    const ba::tile_plan built = ba::make_tile_plan(mask, {state.range(0), state.range(1)},
                                                   {.transposed = asked == direction::both});
    bytes = built.memory_size();
    slices = std::ssize(built.slices());
  }
  state.counters["slices"] = static_cast<double>(slices);
  state.counters["bytes"] = static_cast<double>(bytes);
}

void register_all() {
  const auto set_up = [](benchmark::internal::Benchmark* row) {
    row->Args({64, 256})
        ->Args({128, 128})
        ->ArgNames({"queries", "keys"})
        ->Unit(benchmark::kMicrosecond)
        ->MinTime(0.1);
  };
  const auto add = [set_up](const char* name, const ba::attention_mask& mask, direction asked) {
    set_up(benchmark::RegisterBenchmark(
        name, [mask, asked](benchmark::State& state) { plan(state, mask, asked); }));
  };
  const ba::index_t k = 1024;
  add("plan/blocks_32k_64", ragged_blocks(32 * k, 64, 512), direction::by_query);
  add("plan/blocks_32k_64_both", ragged_blocks(32 * k, 64, 512), direction::both);
  add("plan/causal_32k", sliding_window(32 * k, 32 * k), direction::by_query);
  add("plan/window_4k_32k", sliding_window(32 * k, 4 * k), direction::by_query);
  add("plan/blocks_1m_2000_both", ragged_blocks(k * k, 2000, 512), direction::both);
  add("plan/block_causal_1m_2000_both", block_causal(k * k, 2000), direction::both);
  add("plan/sinks_seen_by_all_1m_2000_both", blocks_seeing_sinks(k * k, 2000), direction::both);
  add("plan/gathered_rows_256k_both", gathered_rows(128 * k), direction::both);
  add("plan/gathered_rows_512k_both", gathered_rows(256 * k), direction::both);
  add("plan/gathered_rows_1m_both", gathered_rows(512 * k), direction::both);
  const auto add_draw = [set_up](const char* name, direction asked) {
    set_up(benchmark::RegisterBenchmark(
        name, [asked](benchmark::State& state) { draw_and_plan(state, asked); }));
  };
  add_draw("draw_and_plan/hide_pairs_1m_2000", direction::by_query);
  add_draw("draw_and_plan/hide_pairs_1m_2000_both", direction::both);
}

}  // namespace

int main(int argc, char* argv[]) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

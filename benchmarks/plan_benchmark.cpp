// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
//
// Time to build tile plans, on one core. Figures to meet: 32K tokens in 64 ragged blocks below
// 0.5 ms; 1M tokens in 2,000 blocks below 30 ms with both directions.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <blockattn/plan/make_tile_plan.hpp>
#include <random>
#include <vector>

namespace ba = blockattn;

namespace {

enum class direction { by_query, both };

/// Block attention over `tokens` tokens: context blocks of 40 to 1400 tokens that add up to what
/// the final block leaves.
ba::attention_mask ragged_blocks(ba::index_t tokens, ba::index_t blocks, ba::index_t final_block) {
  constexpr ba::index_t shortest = 40;
  constexpr ba::index_t longest = 1400;
  const ba::index_t context = tokens - final_block;
  std::mt19937_64 engine(1);
  const auto draw = [&engine](ba::index_t low, ba::index_t high) {
    return std::uniform_int_distribution<ba::index_t>(low, high)(engine);
  };
  std::vector<ba::slice> slices;
  ba::index_t begin = 0;
  for (ba::index_t left = blocks - 1; left > 0; --left) {
    // Above or below the mean of what is left, with the odds that keep this mean.
    const ba::index_t rest = context - begin;
    const ba::index_t mean = rest / left;
    const ba::index_t length =
        draw(shortest, longest) >= mean ? draw(shortest, mean) : draw(mean, longest);
    const ba::index_t low = std::max(shortest, rest - (left - 1) * longest);
    const ba::index_t high = std::min(longest, rest - (left - 1) * shortest);
    const ba::index_range block = {begin, begin + std::clamp(length, low, high)};
    slices.push_back({.queries = block, .keys = block, .upper = 0});
    begin = block.end;
  }
  slices.push_back({.queries = {context, tokens}, .keys = {0, tokens}, .upper = 0});
  return ba::attention_mask::from_disjoint_slices(tokens, tokens, slices);
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

std::size_t bytes_of(const ba::tile_lists& lists) {
  const auto bytes = [](const auto& values) { return values.size() * sizeof(values[0]); };
  return bytes(lists.span_begin) + bytes(lists.spans) + bytes(lists.slice_ids) +
         bytes(lists.tile_count) + bytes(lists.order);
}

void plan(benchmark::State& state, const ba::attention_mask& mask, direction asked) {
  const ba::tile_shape shape = {state.range(0), state.range(1)};
  const ba::plan_options options = {.transposed = asked == direction::both};
  for (auto _ : state) benchmark::DoNotOptimize(ba::make_tile_plan(mask, shape, options));

  const ba::tile_plan built = ba::make_tile_plan(mask, shape, options);
  const std::size_t bytes = bytes_of(built.by_query()) + bytes_of(built.by_key()) +
                            built.slices().size() * sizeof(ba::slice) +
                            built.seen_keys().size() * sizeof(ba::index_range);
  const auto count = [&state](const char* name, auto value) {
    state.counters[name] = static_cast<double>(value);
  };
  count("spans", built.by_query().spans.size() + built.by_key().spans.size());
  count("full", built.statistics().full_tiles);
  count("partial", built.statistics().partial_tiles);
  count("bytes", bytes);
}

void register_all() {
  const auto add = [](const char* name, const ba::attention_mask& mask, direction asked) {
    benchmark::RegisterBenchmark(
        name, [mask, asked](benchmark::State& state) { plan(state, mask, asked); })
        ->Args({64, 256})
        ->Args({128, 128})
        ->ArgNames({"queries", "keys"})
        ->Unit(benchmark::kMicrosecond)
        ->MinTime(0.1);
  };
  const ba::index_t k = 1024;
  add("plan/blocks_32k_64", ragged_blocks(32 * k, 64, 512), direction::by_query);
  add("plan/blocks_32k_64_both", ragged_blocks(32 * k, 64, 512), direction::both);
  add("plan/causal_32k", sliding_window(32 * k, 32 * k), direction::by_query);
  add("plan/window_4k_32k", sliding_window(32 * k, 4 * k), direction::by_query);
  add("plan/blocks_1m_2000_both", ragged_blocks(k * k, 2000, 512), direction::both);
  add("plan/block_causal_1m_2000_both", block_causal(k * k, 2000), direction::both);
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

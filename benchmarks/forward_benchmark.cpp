// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Forward as a fraction of the fp32 FMA peak, probed 5 ms before and after every call. Flops are
// those of visible pairs: 2 (head_dim + value_dim) a pair and head. Random data, medians.
// Arguments: tokens, head_dim, mask, threads.

#include <benchmark/benchmark.h>

#include <blockattn/core/eigen_executor.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>
#include <random>
#include <string>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "support/fma_peak.hpp"
#include "support/normal_values.hpp"

namespace {

using namespace blockattn;
using namespace blockattn_benchmark;

enum mask_kind : std::int64_t { causal, ragged_blocks };

/// Blocks of 40 to 1400 tokens and a final block of 512, or of an eighth of the tokens where that
/// is less.
block_layout ragged_layout(index_t tokens, std::mt19937_64& random) {
  const index_t final_block = std::min<index_t>(512, tokens / 8);
  std::vector<index_t> lengths;
  for (index_t left = tokens - final_block; left > 0;) {
    lengths.push_back(std::min(left, std::uniform_int_distribution<index_t>(40, 1400)(random)));
    left -= lengths.back();
  }
  lengths.push_back(final_block);
  return block_layout::from_lengths(lengths);
}

template <class T>
void forward(benchmark::State& state) {
  const index_t tokens = state.range(0);
  const index_t head_dim = state.range(1);
  const index_t threads = state.range(3);
  // About the same work for every row of the table, and a head for each thread.
  const index_t heads = state.range(2) == causal && tokens > 8192 ? threads : 4;
  std::mt19937_64 random(1);
  const block_layout layout = ragged_layout(tokens, random);
  const attention_mask mask =
      state.range(2) == causal ? causal_mask(tokens) : block_attention_mask(layout);
  const tile_plan plan = make_tile_plan(mask, cpu::tile_shape_for<T>(head_dim));
  const auto q = normal_values<T>(tokens * heads * head_dim, random);
  const auto k = normal_values<T>(tokens * heads * head_dim, random);
  const auto v = normal_values<T>(tokens * heads * head_dim, random);
  std::vector<T> o(q.size());
  const auto view = [&](auto& values) {
    return token_major(values.data(), tokens, heads, head_dim);
  };
  const forward_arguments<T> arguments{.q = view(q), .k = view(k), .v = view(v), .o = view(o)};

  Eigen::ThreadPool pool(static_cast<int>(threads));
  eigen_executor workers(pool);
  const auto job = cpu::prepare_forward(arguments, plan);
  const workspace_buffer workspace(job.workspace_size(workers.concurrency()));
  const double flops =
      4.0 * static_cast<double>(head_dim * heads * plan.statistics().visible_pairs);

  std::vector<double> fractions;
  std::vector<double> rates;
  cpu::run_job("forward_benchmark", job, workers, workspace.bytes());  // touches the memory
  for (auto _ : state) {
    const double before = probe_fma_peak(workers, 0.005);
    const double begin = seconds_now();
    cpu::run_job("forward_benchmark", job, workers, workspace.bytes());
    const double seconds = seconds_now() - begin;
    const double after = probe_fma_peak(workers, 0.005);
    state.SetIterationTime(seconds);
    rates.push_back(flops / seconds);
    fractions.push_back(flops / seconds / ((before + after) / 2));
  }
  state.counters["of_fma_peak"] = median(fractions);
  state.counters["GFLOP/s"] = median(rates) * 1e-9;
  state.counters["visible_pairs"] = static_cast<double>(plan.statistics().visible_pairs);
  state.SetLabel(
      std::string(state.range(2) == causal ? "causal" : "ragged blocks 40..1400 + final"));
}

void arguments(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"tokens", "d", "mask", "threads"})
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  for (const std::int64_t threads : {1, 2}) {
    for (const std::int64_t mask : {causal, ragged_blocks}) {
      for (const std::int64_t tokens : {4096, 32768}) {
        for (const std::int64_t head_dim : {64, 128})
          benchmark->Args({tokens, head_dim, mask, threads});
      }
    }
  }
  benchmark->Iterations(5);
}

BENCHMARK_TEMPLATE(forward, float)->Apply(arguments);
BENCHMARK_TEMPLATE(forward, bfloat16)->Apply(arguments);

}  // namespace

BENCHMARK_MAIN();

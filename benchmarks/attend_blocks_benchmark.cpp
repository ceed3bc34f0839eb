// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Cached attention over key segments read in place. Few rows are bound by memory: bytes of keys and
// values against the rate at which the same workers read the same buffers. Many rows are bound by
// arithmetic: against the FMA peak. Both ceilings are probed next to every call. Arguments: query
// tokens, query heads, kv heads, head_dim, segments, tokens of each segment, threads.

#include <benchmark/benchmark.h>

#include <blockattn/core/eigen_executor.hpp>
#include <blockattn/cpu/attend_blocks.hpp>
#include <random>

#include "support/fma_peak.hpp"
#include "support/normal_values.hpp"
#include "support/read_rate.hpp"

namespace {

using namespace blockattn;
using namespace blockattn_benchmark;

template <class KV>
void attend_blocks(benchmark::State& state) {
  const index_t queries = state.range(0);
  const index_t heads = state.range(1);
  const index_t kv_heads = state.range(2);
  const index_t head_dim = state.range(3);
  const index_t count = state.range(4);
  const index_t length = state.range(5);
  const index_t threads = state.range(6);
  std::mt19937_64 random(1);
  const auto q = normal_values<float>(queries * heads * head_dim, random);
  std::vector<float> o(q.size());
  const auto k = normal_values<KV>(count * length * kv_heads * head_dim, random);
  const auto v = normal_values<KV>(count * length * kv_heads * head_dim, random);
  const rope rotation({.head_dim = head_dim});
  std::vector<key_segment<KV>> segments;
  for (index_t s = 0; s < count; ++s) {  // as the block store keeps them: each segment head-major
    const index_t at = s * length * kv_heads * head_dim;
    segments.push_back({.k = head_major(k.data() + at, length, kv_heads, head_dim),
                        .v = head_major(v.data() + at, length, kv_heads, head_dim),
                        .query_shift = -static_cast<double>(s * length)});
  }
  const attend_sequence<KV> sequence{.queries = {0, queries}, .segments = segments};
  const attend_arguments<float, KV, KV, float> arguments{
      .q = token_major(q.data(), queries, heads, head_dim),
      .o = token_major(o.data(), queries, heads, head_dim),
      .sequences = {&sequence, 1}};
  Eigen::ThreadPool pool(static_cast<int>(threads));
  eigen_executor workers(pool);
  const auto job = cpu::prepare_attend_blocks(arguments, {.rope = &rotation});
  const workspace_buffer workspace(job.workspace_size(workers.concurrency()));
  const double flops = 4.0 * static_cast<double>(head_dim * heads * queries * count * length);
  const double bytes = static_cast<double>((k.size() + v.size()) * sizeof(KV));

  std::vector<double> of_peak, of_read_rate, seconds;
  cpu::run_job("attend_blocks_benchmark", job, workers, workspace.bytes());
  for (auto _ : state) {
    const double peak = probe_fma_peak(workers, 0.005);
    const double read_rate = probe_read_rate(workers, std::as_bytes(std::span(k)));
    const double begin = seconds_now();
    cpu::run_job("attend_blocks_benchmark", job, workers, workspace.bytes());
    seconds.push_back(seconds_now() - begin);
    state.SetIterationTime(seconds.back());
    of_peak.push_back(flops / seconds.back() / peak);
    of_read_rate.push_back(bytes / seconds.back() / read_rate);
  }
  state.counters["of_fma_peak"] = median(of_peak);
  state.counters["of_read_rate"] = median(of_read_rate);
  state.counters["GB/s"] = bytes / median(seconds) * 1e-9;
  state.counters["GFLOP/s"] = flops / median(seconds) * 1e-9;
}

void arguments(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"queries", "heads", "kv", "d", "segments", "length", "threads"});
  benchmark->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(9);
  for (const std::int64_t threads : {1, 2}) {
    benchmark->Args({1, 32, 8, 128, 1, 32768, threads});  // decode over one long prefix
    benchmark->Args({1, 32, 8, 128, 64, 512, threads});   // decode over cached blocks
    benchmark->Args({64, 32, 8, 128, 64, 512, threads});  // short final block over cached blocks
    benchmark->Args(
        {64, 9, 3, 64, 10, 400, threads});  // SmolLM2-135M's question over 4K cached tokens
    benchmark->Args({64, 9, 3, 64, 250, 16, threads});  // the same in pages with a place each
  }
}

BENCHMARK_TEMPLATE(attend_blocks, float)->Apply(arguments);
BENCHMARK_TEMPLATE(attend_blocks, bfloat16)->Apply(arguments);

}  // namespace

BENCHMARK_MAIN();

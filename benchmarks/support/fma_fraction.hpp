// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>

#include <blockattn/core/workspace.hpp>
#include <blockattn/cpu/run_job.hpp>

#include "support/fma_peak.hpp"

namespace blockattn_benchmark {

/// Times a prepared job of `flops` as a fraction of the fp32 FMA peak, probed 5 ms before and after
/// every call. Medians.
template <class Job, class Executor>
void measure_fma_fraction(benchmark::State& state,
                          const Job& job,
                          Executor& workers,
                          double flops) {
  const workspace_buffer workspace(job.workspace_size(workers.concurrency()));
  std::vector<double> fractions;
  std::vector<double> rates;
  cpu::run_job("benchmark", job, workers, workspace.bytes());  // touches the memory
  for (auto _ : state) {
    const double before = probe_fma_peak(workers, 0.005);
    const double begin = seconds_now();
    cpu::run_job("benchmark", job, workers, workspace.bytes());
    const double seconds = seconds_now() - begin;
    const double after = probe_fma_peak(workers, 0.005);
    state.SetIterationTime(seconds);
    rates.push_back(flops / seconds);
    fractions.push_back(flops / seconds / ((before + after) / 2));
  }
  state.counters["of_fma_peak"] = median(fractions);
  state.counters["GFLOP/s"] = median(rates) * 1e-9;
}

}  // namespace blockattn_benchmark

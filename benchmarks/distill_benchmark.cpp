// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Distillation loss and its gradient: the time as a multiple of what memory needs to deliver the
// teacher's and the student's logits once and to take the gradient once, probed next to every call
// with the same buffers (the faster of cached and streamed stores). Arguments: tokens, vocabulary,
// divergence (0 forward KL, 1 reverse KL, 2 Jensen-Shannon), gradient in place of the student's
// logits (0 or 1), threads.

#include <benchmark/benchmark.h>

#include <blockattn/core/eigen_executor.hpp>
#include <blockattn/core/workspace.hpp>
#include <blockattn/distill/distillation_loss.hpp>
#include <random>

#include "support/normal_values.hpp"
#include "support/traffic_rate.hpp"

namespace {

using namespace blockattn;
using namespace blockattn_benchmark;

/// A cache line aligned copy: streamed stores need it.
template <class T>
std::span<T> logits_in(const workspace_buffer& buffer, index_t count, std::mt19937_64& random) {
  const std::span<T> logits(reinterpret_cast<T*>(buffer.bytes().data()),
                            static_cast<std::size_t>(count));
  // Drawn once for 64K logits: the time depends on none of them.
  const auto values = normal_values<T>(1 << 16, random);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = values[(i * 7919) % values.size()];
  return logits;
}

template <class T>
void distillation(benchmark::State& state) {
  const index_t tokens = state.range(0);
  const index_t vocabulary = state.range(1);
  const auto kind = static_cast<divergence>(state.range(2));
  const bool in_place = state.range(3) != 0;
  const auto count = tokens * vocabulary;
  const auto size = count * static_cast<index_t>(sizeof(T));
  std::mt19937_64 random(1);
  const workspace_buffer teacher_buffer(size), student_buffer(size), gradient_buffer(size);
  const auto teacher = logits_in<T>(teacher_buffer, count, random);
  const auto student = logits_in<T>(student_buffer, count, random);
  const auto gradient = in_place ? student : logits_in<T>(gradient_buffer, count, random);
  const distillation_arguments<T> arguments{
      .teacher = dense_logits<const T>(teacher.data(), tokens, vocabulary),
      .student = dense_logits<const T>(student.data(), tokens, vocabulary),
      .d_student = dense_logits(gradient.data(), tokens, vocabulary)};
  Eigen::ThreadPool pool(static_cast<int>(state.range(4)));
  eigen_executor workers(pool);
  const auto job = prepare_distillation_loss<T>(arguments, {.divergence = kind});
  const workspace_buffer workspace(job.workspace_size(workers.concurrency()));
  const double bytes = 3 * static_cast<double>(size);
  run_job("distill_benchmark", job, workers, workspace.bytes());  // touches the memory

  const auto probe = [&](store_path path) {
    return probe_traffic_rate(workers, std::as_bytes(teacher), std::as_bytes(student),
                              std::as_writable_bytes(gradient), path);
  };
  std::vector<double> of_traffic, seconds, rates;
  for (auto _ : state) {
    rates.push_back(std::max(probe(store_path::cached), probe(store_path::streamed)));
    const double begin = seconds_now();
    run_job("distill_benchmark", job, workers, workspace.bytes());
    seconds.push_back(seconds_now() - begin);
    state.SetIterationTime(seconds.back());
    of_traffic.push_back(seconds.back() * rates.back() / bytes);
  }
  state.counters["x_traffic"] = median(of_traffic);
  state.counters["GB/s"] = bytes / median(seconds) * 1e-9;
  state.counters["probe_GB/s"] = median(rates) * 1e-9;
  state.counters["ns/logit"] = median(seconds) / static_cast<double>(count) * 1e9;
}

void arguments(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"tokens", "vocabulary", "divergence", "in_place", "threads"});
  benchmark->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(7);
  for (const std::int64_t threads : {1, 2}) {
    for (const std::int64_t in_place : {0, 1}) {
      benchmark->Args({384, 50257, 0, in_place, threads});   // GPT-2's vocabulary
      benchmark->Args({128, 151936, 0, in_place, threads});  // Qwen's
    }
    benchmark->Args({384, 50257, 1, 0, threads});
    benchmark->Args({384, 50257, 2, 0, threads});
  }
}

BENCHMARK_TEMPLATE(distillation, float)->Apply(arguments);
BENCHMARK_TEMPLATE(distillation, bfloat16)->Apply(arguments);

}  // namespace

BENCHMARK_MAIN();

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <blockattn/core/executor.hpp>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include "support/catch.hpp"

namespace blockattn_test {

using namespace blockattn;

/// The law of the executor concept for one loop: every task runs once, workers are in range, no
/// worker runs two tasks at a time, and what tasks wrote is visible (and not racing: TSan) when
/// parallel_for returns.
template <executor Executor>
void check_parallel_for(Executor& executor, index_t count) {
  CAPTURE(count);
  const index_t workers = executor.concurrency();
  std::vector<int> runs(static_cast<std::size_t>(count), 0);
  std::vector<index_t> tasks_of(static_cast<std::size_t>(workers), 0);
  std::vector<std::atomic<bool>> busy(static_cast<std::size_t>(workers));
  std::atomic<int> bad_workers{0};
  std::atomic<int> overlaps{0};
  executor.parallel_for(count, [&](index_t task, index_t worker) {
    if (worker < 0 || worker >= workers) {
      ++bad_workers;
      return;
    }
    const auto w = static_cast<std::size_t>(worker);
    if (busy[w].exchange(true, std::memory_order_relaxed)) ++overlaps;
    ++runs[static_cast<std::size_t>(task)];
    ++tasks_of[w];
    if (task % 7 == 0) std::this_thread::yield();
    busy[w].store(false, std::memory_order_relaxed);
  });
  CHECK(bad_workers == 0);
  CHECK(overlaps == 0);
  CHECK(runs == std::vector<int>(static_cast<std::size_t>(count), 1));
  index_t total = 0;
  for (const index_t tasks : tasks_of) total += tasks;
  CHECK(total == count);
}

/// `check_parallel_for` around the executor's concurrency and for many tasks.
template <executor Executor>
void check_counts(Executor& executor) {
  const index_t workers = executor.concurrency();
  for (const index_t count : {index_t{0}, index_t{1}, index_t{2}, workers - 1, workers, workers + 1,
                              index_t{1000}, index_t{50000}})
    check_parallel_for(executor, count);
}

/// Whether concurrency() tasks really run at the same time: each waits for all the others to start.
template <executor Executor>
bool runs_at_once(Executor& executor) {
  const index_t workers = executor.concurrency();
  std::atomic<index_t> started{0};
  std::atomic<bool> met{true};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  executor.parallel_for(workers, [&](index_t, index_t) {
    ++started;
    while (started < workers && met) {
      if (std::chrono::steady_clock::now() > deadline) met = false;
      std::this_thread::yield();
    }
  });
  return met;
}

/// A loop in every task of a loop: each inner task runs once.
template <executor Executor>
void check_nested(Executor& executor, index_t outer, index_t inner) {
  std::vector<std::vector<int>> runs(static_cast<std::size_t>(outer),
                                     std::vector<int>(static_cast<std::size_t>(inner), 0));
  executor.parallel_for(outer, [&](index_t i, index_t) {
    executor.parallel_for(inner, [&](index_t j, index_t) {
      ++runs[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)];
    });
  });
  CHECK(runs ==
        std::vector<std::vector<int>>(static_cast<std::size_t>(outer),
                                      std::vector<int>(static_cast<std::size_t>(inner), 1)));
}

}  // namespace blockattn_test

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#ifndef _OPENMP
#error "blockattn/core/openmp_executor.hpp needs OpenMP: compile with -fopenmp"
#endif

#include <omp.h>

#include <algorithm>
#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Runs tasks on an OpenMP team that includes the calling thread. Inside a parallel region the team
/// is what OpenMP grants there, by default the caller alone. `f` must not throw.
class openmp_executor {
 public:
  /// As many workers as OpenMP would use for the calling thread's next parallel region.
  openmp_executor() noexcept : threads_(omp_get_max_threads()) {}

  /// `threads` workers at most; throws `error` unless threads >= 1.
  explicit openmp_executor(int threads) : threads_(threads) {
    detail::require(threads >= 1, "openmp_executor: threads is ", threads, ", must be at least 1");
  }

  index_t concurrency() const noexcept { return threads_; }

  template <class F>
  void parallel_for(index_t count, const F& f) const {
    const auto team = static_cast<int>(std::clamp<index_t>(count, 1, threads_));
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (index_t task = 0; task < count; ++task)
      f(task, static_cast<index_t>(omp_get_thread_num()));
  }

 private:
  int threads_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI

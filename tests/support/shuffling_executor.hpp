// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/executor.hpp>
#include <numeric>
#include <vector>

#include "support/random.hpp"

namespace blockattn_test {

/// Runs the tasks of a loop one at a time in a random order, each as a random worker: what no
/// thread pool does, and every one may do. Results must not depend on it.
class shuffling_executor {
 public:
  shuffling_executor(index_t concurrency, std::uint64_t seed)
      : concurrency_(concurrency), random_(seed) {}

  index_t concurrency() const noexcept { return concurrency_; }

  template <class F>
  void parallel_for(index_t count, const F& f) {
    std::vector<index_t> tasks(static_cast<std::size_t>(count));
    std::iota(tasks.begin(), tasks.end(), index_t{0});
    std::shuffle(tasks.begin(), tasks.end(), random_.engine());
    for (const index_t task : tasks) f(task, random_.integer(0, concurrency_ - 1));
  }

 private:
  index_t concurrency_;
  random_source random_;
};

}  // namespace blockattn_test

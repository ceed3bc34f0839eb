// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/error.hpp>
#include <blockattn/core/openmp_executor.hpp>

#include "core/executor_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

static_assert(executor<openmp_executor>);
static_assert(executor<const openmp_executor>);

TEST_CASE("openmp_executor keeps the executor law") {
  for (const int threads : {1, 2, 5}) {
    CAPTURE(threads);
    openmp_executor executor(threads);
    CHECK(executor.concurrency() == threads);
    check_counts(executor);
  }
}

TEST_CASE("openmp_executor takes OpenMP's own number of threads by default") {
  openmp_executor executor;
  CHECK(executor.concurrency() == omp_get_max_threads());
  check_parallel_for(executor, 100);
}

TEST_CASE("openmp_executor runs concurrency() tasks at once") {
  openmp_executor executor(3);
  CHECK(runs_at_once(executor));
}

TEST_CASE("openmp_executor survives loops inside tasks") {
  openmp_executor executor(3);
  check_nested(executor, 20, 50);
}

TEST_CASE("openmp_executor refuses fewer than one thread") {
  CHECK_THROWS_AS(openmp_executor(0), error);
  CHECK_THROWS_WITH(openmp_executor(-2), contains("openmp_executor") && contains("threads is -2"));
}

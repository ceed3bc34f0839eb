// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Forward as a fraction of the fp32 FMA peak, probed 5 ms before and after every call. Flops are
// those of visible pairs: 2 (head_dim + value_dim) a pair and head. Random data, medians.
// Arguments: tokens, head_dim, mask, threads.

#include <benchmark/benchmark.h>

#include <blockattn/core/eigen_executor.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/plan/make_tile_plan.hpp>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "support/fma_fraction.hpp"
#include "support/masked_cases.hpp"
#include "support/normal_values.hpp"

namespace {

using namespace blockattn;
using namespace blockattn_benchmark;

template <class T>
void forward(benchmark::State& state) {
  const masked_case c(state);
  const index_t heads = c.heads();
  std::mt19937_64 random(1);
  const tile_plan plan = make_tile_plan(c.mask(random), cpu::tile_shape_for<T>(c.head_dim));
  const auto q = normal_values<T>(c.tokens * heads * c.head_dim, random);
  const auto k = normal_values<T>(c.tokens * heads * c.head_dim, random);
  const auto v = normal_values<T>(c.tokens * heads * c.head_dim, random);
  std::vector<T> o(q.size());
  const auto view = [&](auto& values) {
    return token_major(values.data(), c.tokens, heads, c.head_dim);
  };
  const forward_arguments<T> arguments{.q = view(q), .k = view(k), .v = view(v), .o = view(o)};

  Eigen::ThreadPool pool(static_cast<int>(c.threads));
  eigen_executor workers(pool);
  measure_fma_fraction(
      state, cpu::prepare_forward(arguments, plan), workers,
      4.0 * static_cast<double>(c.head_dim * heads * plan.statistics().visible_pairs));
  state.counters["visible_pairs"] = static_cast<double>(plan.statistics().visible_pairs);
}

BENCHMARK_TEMPLATE(forward, float)->Apply(masked_cases);
BENCHMARK_TEMPLATE(forward, bfloat16)->Apply(masked_cases);

}  // namespace

BENCHMARK_MAIN();

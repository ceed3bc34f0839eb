// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Backward as a fraction of the fp32 FMA peak, probed 5 ms before and after every call. Flops are
// those of visible pairs: 10 head_dim a pair and head. Random data, medians.
// Arguments: tokens, head_dim, mask, threads.

#include <benchmark/benchmark.h>

#include <blockattn/core/eigen_executor.hpp>
#include <blockattn/cpu/backward.hpp>
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
void backward(benchmark::State& state) {
  const masked_case c(state);
  const index_t heads = c.heads();
  std::mt19937_64 random(1);
  const tile_plan plan =
      make_tile_plan(c.mask(random), cpu::tile_shape_for<T>(c.head_dim), {.transposed = true});
  const index_t size = c.tokens * heads * c.head_dim;
  const auto q = normal_values<T>(size, random);
  const auto k = normal_values<T>(size, random);
  const auto v = normal_values<T>(size, random);
  const auto d_o = normal_values<T>(size, random);
  std::vector<T> o(q.size()), d_q(q.size()), d_k(q.size()), d_v(q.size());
  std::vector<float> lse(static_cast<std::size_t>(c.tokens * heads));
  const auto view = [&](auto& values) {
    return token_major(values.data(), c.tokens, heads, c.head_dim);
  };
  const lse_view<float> lse_of_rows = token_major_lse(lse.data(), c.tokens, heads);

  Eigen::ThreadPool pool(static_cast<int>(c.threads));
  eigen_executor workers(pool);
  cpu::forward<T>({.q = view(q), .k = view(k), .v = view(v), .o = view(o), .lse = lse_of_rows},
                  plan, {}, workers);
  const backward_arguments<T> arguments{.q = view(q),
                                        .k = view(k),
                                        .v = view(v),
                                        .o = view(std::as_const(o)),
                                        .lse = lse_of_rows,
                                        .d_o = view(d_o),
                                        .d_q = view(d_q),
                                        .d_k = view(d_k),
                                        .d_v = view(d_v)};
  measure_fma_fraction(
      state, cpu::prepare_backward(arguments, plan), workers,
      10.0 * static_cast<double>(c.head_dim * heads * plan.statistics().visible_pairs));
  state.counters["visible_pairs"] = static_cast<double>(plan.statistics().visible_pairs);
}

BENCHMARK_TEMPLATE(backward, float)->Apply(masked_cases);
BENCHMARK_TEMPLATE(backward, bfloat16)->Apply(masked_cases);

}  // namespace

BENCHMARK_MAIN();

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <blockattn/core/executor.hpp>
#include <blockattn/core/range.hpp>

#include "weights.hpp"

namespace rag {

namespace ba = blockattn;

/// Calls `f(range)` for ranges of at most `grain` that cover [0, count), on all workers.
template <class Executor, class F>
void for_runs(const Executor& workers, ba::index_t count, ba::index_t grain, const F& f) {
  workers.parallel_for(ba::ceil_divide(count, grain), [&](ba::index_t run, ba::index_t /*worker*/) {
    f(ba::index_range{run * grain, std::min(count, (run + 1) * grain)});
  });
}

enum class store { assign, add };

/// out = x w^T, or out += x w^T, for x (tokens, inputs), w (outputs, inputs), out (tokens,
/// outputs). Many tokens are shared out by rows, few by output columns; inside a task runs Eigen's
/// product on one thread. It packs the weights anew for each task: with 256 rows that costs 2 % of
/// the time, with 64 it would cost 18 %. Column pieces are free, and 96 is a multiple of Eigen's
/// panels.
template <store Store, class Executor>
void linear(const Executor& workers,
            const Eigen::Ref<const matrix, 0, Eigen::OuterStride<>>& x,
            const matrix& w,
            Eigen::Ref<matrix, 0, Eigen::OuterStride<>> out) {
  constexpr ba::index_t row_grain = 256;
  constexpr ba::index_t column_grain = 96;
  const auto multiply = [&](const ba::index_range& tokens, const ba::index_range& outputs) {
    auto target = out.block(tokens.begin, outputs.begin, tokens.size(), outputs.size());
    const auto product = x.middleRows(tokens.begin, tokens.size()) *
                         w.middleRows(outputs.begin, outputs.size()).transpose();
    if constexpr (Store == store::assign) {
      target.noalias() = product;
    } else {
      target.noalias() += product;
    }
  };
  if (x.rows() >= 2 * row_grain * workers.concurrency()) {
    for_runs(workers, x.rows(), row_grain, [&](const ba::index_range& tokens) {
      multiply(tokens, {0, w.rows()});
    });
  } else {
    for_runs(workers, w.rows(), column_grain, [&](const ba::index_range& outputs) {
      multiply({0, x.rows()}, outputs);
    });
  }
}

}  // namespace rag

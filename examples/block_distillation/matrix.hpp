// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <blockattn/core/eigen_executor.hpp>
#include <blockattn/core/index.hpp>
#include <blockattn/core/range.hpp>
#include <vector>

namespace distillation {

namespace ba = blockattn;

/// Row-major; a row belongs to one token.
template <class T>
using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The parameters of a model, their gradient or their optimizer state. Aligned, because Eigen
/// treats the values in front of the first aligned one apart and may round them otherwise: an equal
/// run must not depend on where its memory lies.
template <class T>
using parameter_vector = std::vector<T, Eigen::aligned_allocator<T>>;

/// Tokens that one task takes. Fixed, so that sums are formed in the same order by any number of
/// threads. With 512 rows the matrix products of a task run at full speed and two threads still
/// share the load evenly.
inline constexpr ba::index_t run_grain = 256;

/// Calls `f(rows, run)` for the runs of `run_grain` rows that cover [0, count), on all workers.
template <class F>
void for_runs(const ba::eigen_executor& workers, ba::index_t count, const F& f) {
  workers.parallel_for(
      ba::ceil_divide(count, run_grain), [&](ba::index_t run, ba::index_t /*worker*/) {
        f(ba::index_range{run * run_grain, std::min(count, (run + 1) * run_grain)}, run);
      });
}

}  // namespace distillation

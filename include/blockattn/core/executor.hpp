// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <concepts>

namespace blockattn::inline BLOCKATTN_ABI {

namespace detail {
struct executor_probe {
  void operator()(index_t /*task*/, index_t /*worker*/) const noexcept {}
};
}  // namespace detail

/// Where work runs. `concurrency()` is the number of workers that may run at once;
/// `parallel_for(count, f)` calls `f(task, worker)` once for each task in [0, count), worker in
/// [0, concurrency()), no two calls with the same worker at the same time, and returns when all are
/// done. Tasks may start in any order; lower numbers first is best. `f` does not throw.
template <class E>
concept executor = requires(E& e, index_t count, const detail::executor_probe& f) {
  { e.concurrency() } -> std::convertible_to<index_t>;
  e.parallel_for(count, f);
};

/// Runs every task on the calling thread.
struct serial_executor {
  static constexpr index_t concurrency() noexcept { return 1; }
  template <class F>
  void parallel_for(index_t count, const F& f) const {
    for (index_t task = 0; task < count; ++task) f(task, index_t{0});
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <blockattn/core/executor.hpp>
#include <blockattn/core/index.hpp>
#include <memory>

// Eigen 5 moved the pool out of unsupported/.
#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

namespace blockattn::inline BLOCKATTN_ABI {

namespace detail {

/// One parallel loop, shared by its caller and its helpers, who claim tasks in rising order. The
/// caller waits for claimed tasks only, never for a helper to start: a helper that a busy pool
/// starts late finds nothing to claim and touches nothing but the counters, which it co-owns.
template <class F>
class claimed_loop {
 public:
  claimed_loop(index_t count, const F& f) noexcept : count_(count), f_(&f) {}

  /// Runs tasks as `worker` until none is left to claim.
  void work(index_t worker) noexcept {
    index_t done = 0;
    for (index_t task = claim(); task < count_; task = claim()) {
      (*f_)(task, worker);
      ++done;
    }
    if (done > 0 && finished_.fetch_add(done, std::memory_order_acq_rel) + done == count_)
      finished_.notify_all();
  }

  /// Returns when every task has run.
  void wait() const noexcept {
    for (index_t finished = finished_.load(std::memory_order_acquire); finished < count_;
         finished = finished_.load(std::memory_order_acquire))
      finished_.wait(finished, std::memory_order_acquire);
  }

 private:
  index_t claim() noexcept { return next_.fetch_add(1, std::memory_order_relaxed); }

  const index_t count_;
  const F* const f_;  // alive while a claimed task is unfinished
  std::atomic<index_t> next_{0};
  std::atomic<index_t> finished_{0};
};

}  // namespace detail

/// Runs tasks on an Eigen thread pool, which must outlive the executor. The caller works along as
/// worker 0 with concurrency() - 1 helpers, so that caller and pool together keep as many threads
/// busy as the pool has. May be called from the pool's own threads, however busy the others are,
/// and from several threads at once. `f` must not throw. Each call with more than one task
/// allocates one shared counter block and what the pool needs to schedule the helpers.
class eigen_executor {
 public:
  explicit eigen_executor(Eigen::ThreadPoolInterface& pool) noexcept : pool_(&pool) {}

  /// The pool's number of threads, at least 1.
  index_t concurrency() const noexcept { return std::max<index_t>(1, pool_->NumThreads()); }

  template <class F>
  void parallel_for(index_t count, const F& f) const {
    const index_t workers = std::min(count, concurrency());
    if (workers <= 1) return serial_executor{}.parallel_for(count, f);
    const auto loop = std::make_shared<detail::claimed_loop<F>>(count, f);
    // A destructor, because helpers refer to f even when Schedule throws for want of memory.
    struct completion {
      detail::claimed_loop<F>& loop;
      ~completion() {
        loop.work(0);
        loop.wait();
      }
    };
    const completion completes{*loop};
    for (index_t worker = 1; worker < workers; ++worker)
      pool_->Schedule([loop, worker] { loop->work(worker); });
  }

 private:
  Eigen::ThreadPoolInterface* pool_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI

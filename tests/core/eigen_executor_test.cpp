// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <blockattn/core/eigen_executor.hpp>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "core/executor_checks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

static_assert(executor<eigen_executor>);
static_assert(executor<const eigen_executor>);

namespace {

/// A pool whose threads never get to it: what it is given stays in `closures`.
class stalled_pool : public Eigen::ThreadPoolInterface {
 public:
  explicit stalled_pool(int threads) : threads_(threads) {}
  void Schedule(std::function<void()> closure) override { closures.push_back(std::move(closure)); }
  int NumThreads() const override { return threads_; }
  int CurrentThreadId() const override { return -1; }

  std::vector<std::function<void()>> closures;

 private:
  int threads_;
};

/// A pool that runs what it is given before Schedule returns, as Eigen's does when a queue is full.
class immediate_pool : public Eigen::ThreadPoolInterface {
 public:
  void Schedule(std::function<void()> closure) override { closure(); }
  int NumThreads() const override { return 4; }
  int CurrentThreadId() const override { return -1; }
};

}  // namespace

TEST_CASE("eigen_executor keeps the executor law") {
  for (const int threads : {1, 2, 5}) {
    CAPTURE(threads);
    Eigen::ThreadPool pool(threads);
    eigen_executor executor(pool);
    CHECK(executor.concurrency() == threads);
    check_counts(executor);
  }
}

TEST_CASE("eigen_executor runs concurrency() tasks at once") {
  Eigen::ThreadPool pool(3);
  eigen_executor executor(pool);
  CHECK(runs_at_once(executor));
}

TEST_CASE("eigen_executor sleeps until its slowest helper is done") {
  Eigen::ThreadPool pool(2);
  eigen_executor executor(pool);
  std::atomic<int> started{0};
  std::atomic<int> finished{0};
  executor.parallel_for(2, [&](index_t, index_t worker) {
    ++started;
    while (started < 2) std::this_thread::yield();
    if (worker != 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ++finished;
  });
  CHECK(finished == 2);
}

TEST_CASE("eigen_executor survives loops inside tasks") {
  Eigen::ThreadPool pool(3);
  eigen_executor executor(pool);
  check_nested(executor, 20, 50);
}

TEST_CASE("eigen_executor survives many short loops") {
  Eigen::ThreadPool pool(4);
  eigen_executor executor(pool);
  for (index_t repeat = 0; repeat < 2000; ++repeat) {
    std::vector<index_t> written(static_cast<std::size_t>(repeat % 9), -1);
    executor.parallel_for(
        repeat % 9, [&](index_t task, index_t) { written[static_cast<std::size_t>(task)] = task; });
    for (std::size_t task = 0; task < written.size(); ++task)
      REQUIRE(written[task] == static_cast<index_t>(task));
  }
}

TEST_CASE("eigen_executor does the work alone when no pool thread is free") {
  for (const int threads : {0, 1, 2, 8}) {
    CAPTURE(threads);
    stalled_pool pool(threads);
    eigen_executor executor(pool);
    CHECK(executor.concurrency() == (threads == 0 ? 1 : threads));
    check_parallel_for(executor, 100);
    CHECK(pool.closures.size() == static_cast<std::size_t>(executor.concurrency() - 1));
  }
}

TEST_CASE("eigen_executor asks for no more helpers than there are tasks") {
  stalled_pool pool(8);
  eigen_executor executor(pool);
  check_parallel_for(executor, 3);
  CHECK(pool.closures.size() == 2);
}

TEST_CASE("a helper that starts after the loop has ended touches nothing of it") {
  stalled_pool pool(4);
  eigen_executor executor(pool);
  index_t runs = 0;
  {
    // On the heap, so that ASan sees a late touch.
    const auto task = std::make_unique<std::function<void(index_t, index_t)>>(
        [&runs](index_t, index_t) { ++runs; });
    executor.parallel_for(10, *task);
  }
  for (const auto& late : pool.closures) late();
  CHECK(runs == 10);
}

TEST_CASE("eigen_executor accepts a pool that runs closures inside Schedule") {
  immediate_pool pool;
  eigen_executor executor(pool);
  check_counts(executor);
}

TEST_CASE("eigen_executor does not deadlock on a pool thread when the other threads are blocked") {
  Eigen::ThreadPool pool(2);
  eigen_executor executor(pool);
  std::promise<void> blocked;
  std::promise<void> release;
  pool.Schedule([&blocked, released = release.get_future().share()] {
    blocked.set_value();
    released.wait();
  });
  blocked.get_future().wait();
  std::atomic<index_t> runs{0};
  std::promise<void> finished;
  pool.Schedule([&] {
    executor.parallel_for(100, [&](index_t, index_t) { ++runs; });
    finished.set_value();
  });
  const bool in_time =
      finished.get_future().wait_for(std::chrono::seconds(20)) == std::future_status::ready;
  release.set_value();
  CHECK(in_time);
  CHECK(runs == 100);
}

TEST_CASE("eigen_executor serves callers on every pool thread and outside at once") {
  constexpr int threads = 4;
  Eigen::ThreadPool pool(threads);
  eigen_executor executor(pool);
  std::vector<std::promise<index_t>> sums(threads);
  const auto sum_of_loop = [&executor] {
    std::vector<index_t> parts(64, 0);
    for (int repeat = 0; repeat < 50; ++repeat)
      executor.parallel_for(
          64, [&](index_t task, index_t) { parts[static_cast<std::size_t>(task)] += task; });
    index_t sum = 0;
    for (const index_t part : parts) sum += part;
    return sum;
  };
  for (auto& sum : sums) pool.Schedule([&sum, &sum_of_loop] { sum.set_value(sum_of_loop()); });
  constexpr index_t expected = 50 * (63 * 64 / 2);
  CHECK(sum_of_loop() == expected);
  for (auto& sum : sums) CHECK(sum.get_future().get() == expected);
}

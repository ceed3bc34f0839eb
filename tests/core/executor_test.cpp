// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/executor.hpp>
#include <vector>

#include "core/executor_checks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

namespace {

struct without_concurrency {
  template <class F>
  void parallel_for(index_t, const F&) {}
};
struct without_parallel_for {
  index_t concurrency() const { return 1; }
};
struct wants_one_argument {
  index_t concurrency() const { return 1; }
  template <class F>
  void parallel_for(index_t count, const F& f) requires requires {
    f(count);
  }
  { f(count); }
};

static_assert(executor<serial_executor>);
static_assert(executor<const serial_executor>);
static_assert(!executor<without_concurrency>);
static_assert(!executor<without_parallel_for>);
static_assert(!executor<wants_one_argument>);
static_assert(!executor<int>);

}  // namespace

TEST_CASE("serial_executor keeps the executor law") {
  serial_executor serial;
  check_counts(serial);
  check_nested(serial, 3, 5);
}

TEST_CASE("serial_executor runs tasks in order on worker 0") {
  std::vector<index_t> order;
  serial_executor{}.parallel_for(4, [&](index_t task, index_t worker) {
    CHECK(worker == 0);
    order.push_back(task);
  });
  CHECK(order == std::vector<index_t>{0, 1, 2, 3});
}

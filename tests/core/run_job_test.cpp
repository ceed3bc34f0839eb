// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/run_job.hpp>

#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn;
using blockattn_test::contains;

namespace {

/// Two phases of three tasks that count themselves.
struct counting_job {
  int* runs;
  static constexpr index_t phases() { return 2; }
  static constexpr index_t tasks(index_t /*phase*/) { return 3; }
  static constexpr index_t workspace_size(index_t concurrency) { return 64 * concurrency; }
  void run(index_t, index_t, index_t worker, std::span<std::byte> workspace) const noexcept {
    workspace[static_cast<std::size_t>(64 * worker)] = std::byte{1};
    ++*runs;
  }
};

struct claims {
  index_t workers;
  index_t concurrency() const { return workers; }
  template <class F>
  void parallel_for(index_t count, const F& f) const {
    serial_executor{}.parallel_for(count, f);
  }
};

}  // namespace

TEST_CASE("run_job runs every task of every phase") {
  int runs = 0;
  serial_executor serial;
  const workspace_buffer workspace(64);
  run_job("f", counting_job{&runs}, serial, workspace.bytes());
  CHECK(runs == 6);
  run_job("f", counting_job{&runs}, serial);
  CHECK(runs == 12);
}

TEST_CASE("an executor without workers is refused before anything runs") {
  int runs = 0;
  const workspace_buffer workspace(640);
  for (const index_t workers : {index_t{0}, index_t{-3}}) {
    claims executor{workers};
    const auto sentence =
        contains("f: the executor's concurrency() is " + std::to_string(workers) + ", must be");
    CHECK_THROWS_WITH(run_job("f", counting_job{&runs}, executor, workspace.bytes()), sentence);
    CHECK_THROWS_WITH(run_job("f", counting_job{&runs}, executor), sentence);
    CHECK_THROWS_WITH(workspace_size(counting_job{&runs}, workers), contains("concurrency is"));
  }
  CHECK(runs == 0);
  CHECK(workspace_size(counting_job{&runs}, 3) == 192);
  CHECK_THROWS_WITH(workspace_size(counting_job{&runs}, index_t{1} << 56),
                    contains("more bytes than any machine"));
}

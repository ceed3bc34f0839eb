// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// An engine whose threads arrive as (thread, threads) runs the phases itself, in its own memory: no
// executor, no allocation inside the call.

#include <atomic>
#include <barrier>
#include <blockattn/blockattn.hpp>
#include <cstdio>
#include <thread>
#include <vector>

namespace ba = blockattn;

int main() {
  constexpr ba::index_t tokens = 300, heads = 4, head_dim = 32, threads = 3;
  const std::vector<float> q(tokens * heads * head_dim, 0.25F);
  std::vector<float> o(q.size()), serial(q.size());
  const auto view = [](auto& values) {
    return ba::token_major(values.data(), tokens, heads, head_dim);
  };
  const auto plan =
      ba::make_tile_plan(ba::causal_mask(tokens), ba::cpu::tile_shape_for<float>(head_dim));

  const auto job =
      ba::cpu::prepare_forward({.q = view(q), .k = view(q), .v = view(q), .o = view(o)}, plan);
  const ba::workspace_buffer workspace(ba::cpu::workspace_size(job, threads));
  std::vector<std::atomic<ba::index_t>> next(static_cast<std::size_t>(job.phases()));
  std::barrier meet(threads);

  const auto engine_thread = [&](ba::index_t thread) {
    for (ba::index_t phase = 0; phase < job.phases(); ++phase) {
      auto& counter = next[static_cast<std::size_t>(phase)];
      for (ba::index_t task = counter++; task < job.tasks(phase); task = counter++) {
        job.run(phase, task, thread, workspace.bytes());
      }
      meet.arrive_and_wait();
    }
  };
  {
    std::vector<std::jthread> pool;
    for (ba::index_t thread = 0; thread < threads; ++thread)
      pool.emplace_back(engine_thread, thread);
  }

  ba::cpu::forward({.q = view(q), .k = view(q), .v = view(q), .o = view(serial)}, plan);
  std::printf("%s\n", o == serial ? "same bits as one thread" : "different");
}

// Output:
// same bits as one thread

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/executor.hpp>
#include <blockattn/core/workspace.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Bytes that `job` needs for up to `concurrency` workers.
template <class Job>
index_t workspace_size(const Job& job, index_t concurrency) noexcept {
  return job.workspace_size(concurrency);
}

/// Runs a prepared job, phase after phase, in the caller's workspace. Throws `error` when the
/// workspace is too small or misaligned, before anything is written. Allocates nothing.
template <class Job, executor Executor>
void run_job(const char* function,
             const Job& job,
             Executor& workers,
             std::span<std::byte> workspace) {
  detail::check_workspace(function, workspace,
                          job.workspace_size(static_cast<index_t>(workers.concurrency())));
  for (index_t phase = 0; phase < job.phases(); ++phase) {
    workers.parallel_for(job.tasks(phase),
                         [&job, phase, workspace](index_t task, index_t worker) noexcept {
                           job.run(phase, task, worker, workspace);
                         });
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/executor.hpp>
#include <blockattn/core/overlap_checks.hpp>
#include <blockattn/core/workspace.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Bytes that `job` needs for up to `concurrency` workers, at least 1. Errors: no worker; more
/// bytes than any machine has.
template <class Job>
index_t workspace_size(const Job& job, index_t concurrency) {
  detail::require(concurrency >= 1, "workspace_size: concurrency is ", concurrency,
                  ", must be at least 1");
  const index_t size = job.workspace_size(concurrency);
  detail::require(size < detail::too_large / 2, "workspace_size: for ", concurrency,
                  " workers it has more bytes than any machine");
  return size;
}

namespace detail {

/// The workspace that an executor's workers need. Errors: an executor without workers.
template <class Job, executor Executor>
index_t workspace_size_for(const char* function, const Job& job, Executor& workers) {
  const auto concurrency = static_cast<index_t>(workers.concurrency());
  require(concurrency >= 1, function, ": the executor's concurrency() is ", concurrency,
          ", must be at least 1");
  return job.workspace_size(concurrency);
}

}  // namespace detail

/// Runs a prepared job, phase after phase, in the caller's workspace. Throws `error` when the
/// workspace is too small, misaligned or over a tensor of the call, or the executor has no worker,
/// before anything is written.
/// Allocates nothing.
template <class Job, executor Executor>
void run_job(const char* function,
             const Job& job,
             Executor& workers,
             std::span<std::byte> workspace) {
  const index_t used = detail::workspace_size_for(function, job, workers);
  detail::check_workspace(function, workspace, used);
  if constexpr (requires(const detail::workspace_check& visit) { job.visit_memory(visit); })
    job.visit_memory(detail::workspace_check(function, workspace, used));
  for (index_t phase = 0; phase < job.phases(); ++phase) {
    workers.parallel_for(job.tasks(phase),
                         [&job, phase, workspace](index_t task, index_t worker) noexcept {
                           job.run(phase, task, worker, workspace);
                         });
  }
}

/// The same in a workspace that is allocated for this call.
template <class Job, executor Executor>
void run_job(const char* function, const Job& job, Executor& workers) {
  const workspace_buffer workspace(detail::workspace_size_for(function, job, workers));
  run_job(function, job, workers, workspace.bytes());
}

}  // namespace blockattn::inline BLOCKATTN_ABI

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_checks.hpp>
#include <blockattn/cpu/attend_job.hpp>
#include <blockattn/cpu/head_dims.hpp>
#include <blockattn/cpu/run_job.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

/// Checks an attend_blocks call and cuts it into tasks. Throws what `attend_blocks` throws.
/// O(segments).
template <class Q = float, class K = Q, class V = K, class O = Q, class Arch = default_arch>
attend_job<Q, K, V, O, Arch> prepare_attend_blocks(const attend_arguments<Q, K, V, O>& arguments,
                                                   const attend_options& options = {}) {
  constexpr const char* function = "cpu::attend_blocks";
  const index_t kv_heads = detail::check_attend(function, arguments, options);
  detail::check_head_dim(function, "q", arguments.q.head_dim);
  detail::check_head_dim(function, "o", arguments.o.head_dim);
  return {arguments, options, kv_heads};
}

/// Attention of new queries to keys that stay where they are: cached blocks, pages, a shared
/// prefix, and the sequence's own growing tail (formula: key_segment). For each sequence, query and
/// head
///   o, lse = softmax over the keys of all its segments and
///            the visible part of its tail [, sink logit]
/// Cached blocks are stored rotated for positions 0..len-1 and serve any number of prompts at
/// different offsets at the same time: queries are turned by query_shift instead of the keys being
/// rewritten (turning is free for one query and costs 3 head_dim flops for each query row and
/// segment otherwise; where keys are fewer, they are turned while packed). Rows of q outside all
/// sequences are left alone. A row that sees nothing gets o = 0, lse = -inf (or its sink logit).
/// Arithmetic is fp32 (fp64 for fp64 tensors); the result has the same bits for every executor (the
/// sizes of the other sequences of a call decide where long keys are cut, and so the last bits).
/// Throws `error` on shapes that disagree, overlapping query ranges, a query_shift without
/// options.rope, partitions that decrease or whose weights differ, bad numbers, a small or
/// misaligned workspace; nothing has been written then. Work: 2 (head_dim + value_dim) flops per
/// visible pair and head. Memory traffic: every key and value once per tile of 96 or 192 rows
/// (queries x heads of the GQA group). Workspace: workspace_size(prepare_attend_blocks(...),
/// concurrency).
template <class Q = float,
          class K = Q,
          class V = K,
          class O = Q,
          class Arch = default_arch,
          class Executor>
requires executor<std::remove_reference_t<Executor>>
void attend_blocks(const attend_arguments<Q, K, V, O>& arguments,
                   const attend_options& options,
                   Executor&& workers,
                   std::span<std::byte> workspace) {
  run_job("cpu::attend_blocks", prepare_attend_blocks<Q, K, V, O, Arch>(arguments, options),
          workers, workspace);
}

/// The same with a workspace allocated for this call.
template <class Q = float,
          class K = Q,
          class V = K,
          class O = Q,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void attend_blocks(const attend_arguments<Q, K, V, O>& arguments,
                   const attend_options& options = {},
                   Executor&& workers = Executor{}) {
  const auto job = prepare_attend_blocks<Q, K, V, O, Arch>(arguments, options);
  const workspace_buffer workspace(job.workspace_size(static_cast<index_t>(workers.concurrency())));
  run_job("cpu::attend_blocks", job, workers, workspace.bytes());
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_checks.hpp>
#include <blockattn/cpu/attend_job.hpp>
#include <blockattn/cpu/head_dims.hpp>
#include <blockattn/cpu/run_job.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

namespace detail {

template <class Arch, class Q, class K, class V, class O>
attend_job<Q, K, V, O, Arch> make_attend_job(const char* function,
                                             const attend_arguments<Q, K, V, O>& arguments,
                                             const attend_options& options,
                                             memory_state memory) {
  const index_t kv_heads = check_attend_shapes(function, arguments, options, memory);
  if (memory == memory_state::allocated) check_sink_values(function, arguments.sink_logits);
  check_head_dim(function, "q", arguments.q.head_dim);
  check_head_dim(function, "o", arguments.o.head_dim);
  return {arguments, options, kv_heads};
}

}  // namespace detail

/// Checks an attend_blocks call and cuts it into tasks. Throws what `attend_blocks` throws.
/// O(segments).
template <class Q = float, class K = Q, class V = K, class O = Q, class Arch = default_arch>
attend_job<Q, K, V, O, Arch> prepare_attend_blocks(const attend_arguments<Q, K, V, O>& arguments,
                                                   const attend_options& options = {}) {
  return detail::make_attend_job<Arch>("cpu::attend_blocks", arguments, options,
                                       detail::memory_state::allocated);
}

/// Refused: the job reads the lists of sequences and segments, which a temporary may take with it.
/// Give the arguments a name, and keep the lists while the job runs.
template <class Q = float, class K = Q, class V = K, class O = Q, class Arch = default_arch>
attend_job<Q, K, V, O, Arch> prepare_attend_blocks(attend_arguments<Q, K, V, O>&& arguments,
                                                   const attend_options& options = {}) = delete;

/// Bytes that attend_blocks needs for up to `concurrency` workers, from shapes alone: the data of
/// queries, results, keys and values may be null. Errors: those of attend_blocks.
template <class Q = float, class K = Q, class V = K, class O = Q, class Arch = default_arch>
index_t attend_blocks_workspace_size(const attend_arguments<Q, K, V, O>& arguments,
                                     const attend_options& options,
                                     index_t concurrency) {
  return workspace_size(
      detail::make_attend_job<Arch>("cpu::attend_blocks_workspace_size", arguments, options,
                                    detail::memory_state::not_yet),
      concurrency);
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
  run_job("cpu::attend_blocks", job, workers);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI

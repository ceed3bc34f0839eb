// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/forward_job.hpp>
#include <blockattn/cpu/head_dims.hpp>
#include <blockattn/cpu/run_job.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

namespace detail {

template <class Arch, class Q, class K, class V, class O>
forward_job<Q, K, V, O, Arch> make_forward_job(const char* function,
                                               const forward_arguments<Q, K, V, O>& arguments,
                                               const plan_set& plans,
                                               const attention_options& options,
                                               memory_state memory) {
  check_forward_shapes(function, arguments, options, memory);
  if (memory == memory_state::allocated) check_sink_values(function, arguments.sink_logits);
  check_plan_set(plans, arguments.q.heads, arguments.q.tokens, arguments.k.tokens, function);
  check_head_dim(function, "q", arguments.q.head_dim);
  check_head_dim(function, "v", arguments.v.head_dim);
  return {arguments, plans, options};
}

}  // namespace detail

/// Checks a forward call and cuts it into tasks; see forward_job for how to run them. Throws what
/// `forward` throws. Allocates nothing, computes nothing. O(plans).
template <class Q = float, class K = Q, class V = K, class O = Q, class Arch = default_arch>
forward_job<Q, K, V, O, Arch> prepare_forward(const forward_arguments<Q, K, V, O>& arguments,
                                              const plan_set& plans,
                                              const attention_options& options = {}) {
  return detail::make_forward_job<Arch>("cpu::forward", arguments, plans, options,
                                        detail::memory_state::allocated);
}

/// Refused: the job would outlive the plan. Keep the plan while the job runs.
template <class Q = float, class K = Q, class V = K, class O = Q, class Arch = default_arch>
forward_job<Q, K, V, O, Arch> prepare_forward(const forward_arguments<Q, K, V, O>& arguments,
                                              tile_plan&& plan,
                                              const attention_options& options = {}) = delete;

/// Bytes that forward needs for up to `concurrency` workers, from shapes and strides alone: data
/// may be null, so that an engine can plan its memory before it has any. Errors: those of forward.
template <class Q = float, class K = Q, class V = K, class O = Q, class Arch = default_arch>
index_t forward_workspace_size(const forward_arguments<Q, K, V, O>& arguments,
                               const plan_set& plans,
                               index_t concurrency) {
  return workspace_size(detail::make_forward_job<Arch>("cpu::forward_workspace_size", arguments,
                                                       plans, {}, detail::memory_state::not_yet),
                        concurrency);
}

/// Attention over the visible pairs of a plan (formula: reference::forward), fused and tiled:
/// no n x n memory.
///   o   = softmax(softcap(scale * q k^T) over visible keys [, sink logit]) v
///   lse = log of the softmax denominator, natural
/// o is (query_tokens, query_heads, value_dim), lse (query_tokens, query_heads) and optional.
/// Storage types mix: fp32, bf16 and fp16 are multiplied in fp32 (all-bf16 operands as bf16 where
/// the machine can), fp64 in fp64. `plans`: one plan for all heads, or a plan_set; any tile shape,
/// best from tile_shape_for. Head dims: multiples of 8 up to 256, k and v may differ. GQA:
/// query_heads a multiple of kv_heads. A row that sees nothing gets o = 0, lse = -inf (its sink
/// logit with sink_logits). Keys that no row sees may hold anything. The result has the same bits
/// for every executor. Throws `error` on shapes that disagree, a null view with elements,
/// overlapping output rows, a bad option or plan_set, a small or misaligned workspace; nothing has
/// been written then. Work: 2 (head_dim + value_dim) flops per visible pair and query head, plus
/// packing: k (and v unless it can be read in place) is copied once into the workspace of
/// workspace_size(prepare_forward(...), concurrency) bytes.
template <class Q = float,
          class K = Q,
          class V = K,
          class O = Q,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void forward(const forward_arguments<Q, K, V, O>& arguments,
             const plan_set& plans,
             const attention_options& options,
             Executor&& workers,
             std::span<std::byte> workspace) {
  run_job("cpu::forward", prepare_forward<Q, K, V, O, Arch>(arguments, plans, options), workers,
          workspace);
}

/// The same with a workspace allocated for this call.
template <class Q = float,
          class K = Q,
          class V = K,
          class O = Q,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void forward(const forward_arguments<Q, K, V, O>& arguments,
             const plan_set& plans,
             const attention_options& options = {},
             Executor&& workers = Executor{}) {
  const auto job = prepare_forward<Q, K, V, O, Arch>(arguments, plans, options);
  run_job("cpu::forward", job, workers);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/backward_job.hpp>
#include <blockattn/cpu/head_dims.hpp>
#include <blockattn/cpu/run_job.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

namespace detail {

/// Query heads that share a kv head meet its keys in one order: their plans cut them alike.
inline void check_key_tiles(const char* function,
                            const plan_set& plans,
                            index_t q_heads,
                            index_t kv_heads) {
  const index_t group = kv_heads > 0 ? q_heads / kv_heads : 1;
  for (index_t head = 0; head < q_heads; ++head) {
    const index_t first = head / group * group;
    blockattn::detail::require(
        plans.of_head(head).shape().keys == plans.of_head(first).shape().keys, function, ": heads ",
        first, " and ", head, " share kv head ", head / group,
        " but the key tiles of their plans are ", plans.of_head(first).shape().keys, " and ",
        plans.of_head(head).shape().keys);
  }
}

template <class Arch, class Arguments>
backward_job<Arguments, Arch> make_backward_job(const char* function,
                                                const Arguments& arguments,
                                                const plan_set& plans,
                                                const attention_options& options,
                                                accumulate_mode mode,
                                                memory_state memory = memory_state::allocated) {
  check_backward_shapes(function, arguments, options, memory);
  if (memory == memory_state::allocated) check_sink_values(function, arguments.sink_logits);
  check_plan_set(plans, arguments.q.heads, arguments.q.tokens, arguments.k.tokens, function);
  check_transposed(plans, function);
  check_key_tiles(function, plans, arguments.q.heads, arguments.k.heads);
  check_head_dim(function, "q", arguments.q.head_dim);
  check_head_dim(function, "v", arguments.v.head_dim);
  return {arguments, plans, options, mode};
}

}  // namespace detail

/// Checks a backward call and cuts it into tasks; see forward_job for how to run them. Throws what
/// `backward` throws. Allocates nothing, computes nothing. O(plans + query_heads).
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch>
backward_job<backward_arguments<Q, K, V, O, DQ, DK, DV>, Arch> prepare_backward(
    const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
    const plan_set& plans,
    const attention_options& options = {}) {
  return detail::make_backward_job<Arch>("cpu::backward", arguments, plans, options,
                                         detail::accumulate_mode::assign);
}

/// Refused: the job would outlive the plan. Keep the plan while the job runs.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch>
backward_job<backward_arguments<Q, K, V, O, DQ, DK, DV>, Arch> prepare_backward(
    const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
    tile_plan&& plan,
    const attention_options& options = {}) = delete;

/// Bytes that backward and backward_accumulate need for up to `concurrency` workers, from shapes and
/// strides alone: data may be null. Errors: those of backward.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch>
index_t backward_workspace_size(const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
                                const plan_set& plans,
                                index_t concurrency) {
  return workspace_size(detail::make_backward_job<Arch>("cpu::backward_workspace_size", arguments,
                                                        plans, {}, detail::accumulate_mode::assign,
                                                        detail::memory_state::not_yet),
                        concurrency);
}

/// The gradient of `forward` (formula: reference::backward) over the visible pairs of a plan that
/// also lists its tiles by key ({.transposed = true}), fused and tiled: scores are recomputed from
/// q, k and lse (arXiv 2205.14135, algorithm 4), there is no n x n memory.
///   d_q, d_k, d_v, d_sink_logits from o, lse and d_o, optionally d_lse; `=`, every element is
///   written. d_k and d_v sum over the query heads of a kv head.
/// o and lse are those that `forward` returned, or those of a merge over more keys: then d_q, d_k
/// and d_v are the share of these keys, and d_sink_logits is the whole. Storage types mix as in
/// `forward`, gradients may have types of their own; everything is multiplied in fp32 (fp64 for
/// double). Heads that share a kv head need plans with key tiles of one size; else every mask, tile
/// shape, GQA ratio and softcap that `forward` takes. Head dims: multiples of 8 up to 256, k and v
/// may differ. Rows that see nothing get d_q = 0, keys that no row sees get 0; both may hold
/// anything (with sink logits d_o must be finite). The result has the same bits for every executor.
/// Throws `error` on shapes that disagree, a null view with elements, a missing lse, gradients
/// whose rows overlap or that begin where another tensor does, a plan without transposed lists, a
/// bad option or plan_set, a small or misaligned workspace; nothing has been written then. Work: 6
/// head_dim + 4 value_dim flops per visible pair and query head. Workspace: O(tokens): sums of d_q
/// in the accumulator, once for each of at most 8 chunks of keys (8 chunks up to 4 kv heads, one
/// from 32 on; 32K tokens, 32 query and 8 kv heads, head_dim 128: 4 chunks, 2.1 GB), plus a tile
/// for each worker.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void backward(const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
              const plan_set& plans,
              const attention_options& options,
              Executor&& workers,
              std::span<std::byte> workspace) {
  run_job("cpu::backward",
          prepare_backward<Q, K, V, O, DQ, DK, DV, Arch>(arguments, plans, options), workers,
          workspace);
}

/// The same with a workspace allocated for this call.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void backward(const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
              const plan_set& plans,
              const attention_options& options = {},
              Executor&& workers = Executor{}) {
  const auto job = prepare_backward<Q, K, V, O, DQ, DK, DV, Arch>(arguments, plans, options);
  run_job("cpu::backward", job, workers);
}

/// Checks a backward_accumulate call and cuts it into tasks. Throws what `backward` throws.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch>
backward_job<backward_arguments<Q, K, V, O, DQ, DK, DV>, Arch> prepare_backward_accumulate(
    const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
    const plan_set& plans,
    const attention_options& options = {}) {
  return detail::make_backward_job<Arch>("cpu::backward_accumulate", arguments, plans, options,
                                         detail::accumulate_mode::add);
}

/// Refused: the job would outlive the plan. Keep the plan while the job runs.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch>
backward_job<backward_arguments<Q, K, V, O, DQ, DK, DV>, Arch> prepare_backward_accumulate(
    const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
    tile_plan&& plan,
    const attention_options& options = {}) = delete;

/// `backward`, with every gradient added to what stands there (+=), rounded once to its storage.
/// A gradient of exactly 0 changes nothing.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void backward_accumulate(const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
                         const plan_set& plans,
                         const attention_options& options,
                         Executor&& workers,
                         std::span<std::byte> workspace) {
  run_job("cpu::backward_accumulate",
          prepare_backward_accumulate<Q, K, V, O, DQ, DK, DV, Arch>(arguments, plans, options),
          workers, workspace);
}

/// The same with a workspace allocated for this call.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void backward_accumulate(const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
                         const plan_set& plans,
                         const attention_options& options = {},
                         Executor&& workers = Executor{}) {
  const auto job =
      prepare_backward_accumulate<Q, K, V, O, DQ, DK, DV, Arch>(arguments, plans, options);
  run_job("cpu::backward_accumulate", job, workers);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI

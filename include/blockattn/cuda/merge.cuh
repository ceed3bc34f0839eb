// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_arguments.hpp>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/merge_kernel.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

/// Bytes of device memory that `merge` needs, aligned to workspace_alignment: 0 up to 32 states,
/// else 88 for each.
template <class P>
index_t merge_workspace_size(std::span<const partial_state<P, float>> states) {
  return detail::state_table_size<detail::merge_state<format_of<P>>>(std::ssize(states));
}

/// Joins softmax states over disjoint keys, as `cpu::merge` does, for every token and head:
///   w_s = log_weight_scale_s * lse_s + log_weight_s
///   lse = log(sum_s exp(w_s) [+ exp(sink)])
///   o   = sum_s exp(w_s - lse) o_s
/// All tensors, lse, row_log_weights and sink_logits are device memory, the list of states itself
/// is host memory and free when the call returns. Storage fp32, bf16 or fp16, sums in fp32; strides
/// of any kind (fastest when every row begins at a multiple of 16 bytes). o and lse may be those of
/// one state. The o of a state that is absent from a row (lse or log_weight -inf) is not read
/// there. Same inputs, same bits. sink_logits must be finite or -inf, which is not checked.
///
/// Only enqueues on `stream`; allocates nothing. Up to 32 states are one kernel; more are first
/// written to the workspace by kernels of their own. Throws `error` on what `cpu::merge` refuses
/// of shapes and weights, 2^31 rows or more, a small or misaligned workspace; nothing has been
/// enqueued then. Bound by memory: each state that is there is read once.
template <class P = float, class O = P>
void merge(const merge_arguments<P, O>& arguments,
           std::span<std::byte> workspace,
           cudaStream_t stream) {
  static_assert(format_of<P> != storage_format::fp64, "cuda::merge: states must not be fp64");
  constexpr const char* function = "cuda::merge";
  constexpr storage_format p_format = format_of<P>;
  constexpr storage_format o_format = format_of<O>;
  const auto& o = arguments.o;
  blockattn::detail::check_merge_shapes(function, arguments);
  const detail::row_split split = detail::split_rows(function, o.tokens, o.heads, o.head_dim);
  blockattn::detail::check_workspace(function, workspace, merge_workspace_size(arguments.states));
  blockattn::detail::visit_memory(
      arguments, blockattn::detail::workspace_check(function, workspace,
                                                    merge_workspace_size(arguments.states)));
  if (split.rows == 0) return;
  using state = detail::merge_state<p_format>;
  const detail::merge_parameters<p_format, o_format> parameters{
      .states = detail::make_state_table<state>(
          function, std::ssize(arguments.states),
          [&](std::size_t s) { return detail::as_merge_state(arguments.states[s]); },
          blockattn::detail::piece<state>(workspace, 0), stream),
      .o = detail::as_device_rows(o),
      .lse = detail::as_device_entries(arguments.lse),
      .sink_logits = arguments.sink_logits.empty() ? nullptr : arguments.sink_logits.data(),
      .split = split,
      .value_dim = static_cast<int>(o.head_dim)};
  detail::merge_kernel<p_format, o_format>
      <<<split.ctas(), detail::row_threads, 0, stream>>>(parameters);
  detail::require_success(cudaGetLastError(), function, "the launch");
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

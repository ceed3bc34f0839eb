// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_backward_arguments.hpp>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/merge_backward_kernel.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// Places in the workspace of a merge_backward call.
template <class P, class O, class D>
struct merge_backward_layout {
  using state = merge_gradient_state<format_of<P>, format_of<D>>;

  index_t states, sink_parts, size;

  explicit merge_backward_layout(const merge_backward_arguments<P, O, D>& arguments) {
    blockattn::detail::workspace_layout layout;
    states = layout.take<std::byte>(state_table_size<state>(std::ssize(arguments.gradients)));
    sink_parts = layout.take<float>(
        arguments.d_sink_logits.empty() ? 0 : arguments.d_o.tokens * arguments.d_o.heads);
    size = layout.size();
  }
};

}  // namespace detail

/// Bytes of device memory that `merge_backward` needs, aligned to workspace_alignment: 168 for each
/// state when there are more than 16, and 4 for each token and head when d_sink_logits is wanted.
template <class P, class O, class D>
index_t merge_backward_workspace_size(const merge_backward_arguments<P, O, D>& arguments) {
  return detail::merge_backward_layout<P, O, D>(arguments).size;
}

/// The gradient of `merge`, as `cpu::merge_backward` computes it (its formulas and rules), for
/// every token and head. All tensors and vectors are device memory, the lists of states and
/// gradients themselves are host memory and free when the call returns. Storage fp32, bf16 or fp16,
/// each role its own, arithmetic in fp32; strides of any kind (fastest when every row begins at a
/// multiple of 16 bytes). `=`, every wanted element is written. States that are absent or whose
/// weight is 0 in a row get gradient 0 there; their o is not read and may hold anything. Same
/// inputs, same bits.
///
/// Only enqueues on `stream`; allocates nothing. One kernel for up to 16 states, one more for the
/// sinks; more states are first written to the workspace by kernels of their own. Throws `error` on
/// what `cpu::merge_backward` refuses of shapes, weights and shared memory, 2^31 rows or more, a
/// small or misaligned workspace; nothing has been enqueued then. Bound by memory: each o is read
/// once, each d_o_s written once.
template <class P = float, class O = P, class D = P>
void merge_backward(const merge_backward_arguments<P, O, D>& arguments,
                    std::span<std::byte> workspace,
                    cudaStream_t stream) {
  static_assert(format_of<P> != storage_format::fp64,
                "cuda::merge_backward: states must not be fp64");
  constexpr const char* function = "cuda::merge_backward";
  const auto& d_o = arguments.d_o;
  blockattn::detail::check_merge_backward_shapes(function, arguments);
  const detail::row_split split = detail::split_rows(function, d_o.tokens, d_o.heads, d_o.head_dim);
  const detail::merge_backward_layout<P, O, D> layout(arguments);
  blockattn::detail::check_workspace(function, workspace, layout.size);
  blockattn::detail::visit_memory(
      arguments, blockattn::detail::workspace_check(function, workspace, layout.size));
  const bool with_sinks = !arguments.d_sink_logits.empty();
  auto* const sink_parts = blockattn::detail::piece<float>(workspace, layout.sink_parts);
  if (split.rows > 0) {
    using state = typename detail::merge_backward_layout<P, O, D>::state;
    const detail::merge_backward_parameters<format_of<P>, format_of<O>, format_of<D>> parameters{
        .states = detail::make_state_table<state>(
            function, std::ssize(arguments.states),
            [&](std::size_t s) {
              return detail::as_merge_gradient_state(arguments.states[s], arguments.gradients[s]);
            },
            blockattn::detail::piece<state>(workspace, layout.states), stream),
        .d_o = detail::as_device_rows(d_o),
        .d_lse = detail::as_device_entries(arguments.d_lse),
        .sink_logits = arguments.sink_logits.empty() ? nullptr : arguments.sink_logits.data(),
        .sink_parts = with_sinks ? sink_parts : nullptr,
        .split = split,
        .tokens = d_o.tokens,
        .value_dim = static_cast<int>(d_o.head_dim)};
    detail::merge_backward_kernel<format_of<P>, format_of<O>, format_of<D>>
        <<<split.ctas(), detail::row_threads, 0, stream>>>(parameters);
    detail::require_success(cudaGetLastError(), function, "the launch");
  }
  if (with_sinks) {
    constexpr int threads = 1024;
    detail::merge_sink_kernel<threads><<<static_cast<unsigned>(d_o.heads), threads, 0, stream>>>(
        sink_parts, d_o.tokens, arguments.d_sink_logits.data());
    detail::require_success(cudaGetLastError(), function, "the launch of the sinks' sum");
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

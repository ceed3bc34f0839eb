// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/checks.hpp>
#include <blockattn/cuda/device_plan.cuh>
#include <blockattn/cuda/merge_parts_kernel.cuh>
#include <blockattn/cuda/row_access.cuh>
#include <blockattn/cuda/runtime.cuh>
#include <limits>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// Refuses storage types that the kernels do not multiply, while compiling.
template <class Q, class K, class V, class O>
constexpr void check_forward_storage() {
  static_assert(format_of<K> == format_of<V>,
                "cuda::forward: k and v must have one storage format, bf16, fp16 or fp32");
  static_assert(format_of<Q> != storage_format::fp64 && format_of<K> != storage_format::fp64,
                "cuda::forward: q, k and v must be bf16, fp16 or fp32, not fp64");
  static_assert(format_of<O> != storage_format::fp64, "cuda::forward: o must not be fp64");
}

/// What the kernels take values of a type for.
template <class T>
using stored_of = typename tensor_operand<format_of<T>>::stored;

inline void check_device_head_dim(const char* function, const char* name, index_t head_dim) {
  blockattn::detail::require(head_dim % 8 == 0 && 8 <= head_dim && head_dim <= 256, function, ": ",
                             name, ".head_dim is ", head_dim,
                             ", must be a multiple of 8 from 8 to 256");
}

/// Everything that `cuda::forward` refuses. Reads no device memory.
template <class Q, class K, class V, class O>
void check_forward_call(const char* function,
                        const forward_arguments<Q, K, V, O>& arguments,
                        const device_plan& plan,
                        const attention_options& options) {
  using blockattn::detail::require;
  blockattn::detail::check_forward_shapes(function, arguments, options);
  const index_t heads = arguments.q.heads;
  check_device_head_dim(function, "q", arguments.q.head_dim);
  check_device_head_dim(function, "v", arguments.v.head_dim);
  require(plan.query_tokens() == arguments.q.tokens && plan.key_tokens() == arguments.k.tokens,
          function, ": the plan is for ", plan.query_tokens(), " queries x ", plan.key_tokens(),
          " keys, the arguments have ", arguments.q.tokens, " x ", arguments.k.tokens);
  require(plan.query_heads() == heads, function, ": the plan is for ", plan.query_heads(),
          " query heads but q has ", heads);
  const index_t head_dim = arguments.q.head_dim;
  const index_t value_dim = arguments.v.head_dim;
  const tile_shape coarse = tile_shape_for(head_dim, value_dim, format_of<K>);
  const tile_shape fine = fine_tile_shape_for(head_dim, value_dim, format_of<K>);
  require(plan.shape() == coarse || plan.shape() == fine, function, ": the plan has tiles of ",
          plan.shape().queries, " x ", plan.shape().keys, ", head dims ", head_dim, " and ",
          value_dim, " need ", coarse.queries, " x ", coarse.keys,
          coarse == fine ? "" : " or 64 x 64", " (cuda::tile_shape_for)");
  require(device_plan_access::most(plan).items * heads <= std::numeric_limits<int>::max(), function,
          ": ", device_plan_access::most(plan).items, " query tiles x ", heads,
          " heads are more than a launch takes");
  require(device_plan_access::most(plan).splits == 0 || heads <= 65535, function, ": ", heads,
          " query heads are more than a launch takes where long rows of tiles are cut");
}

template <class T>
device_view as_device_view(const heads_view<const T>& view) {
  return {.data = view.data,
          .token_stride = view.token_stride,
          .head_stride = view.head_stride,
          .head_dim = static_cast<int>(view.head_dim),
          .vectors = rows_are_aligned(view) ? 1 : 0};
}

template <class O>
output_rows output_rows_of(const heads_view<O>& o,
                           const lse_view<float>& lse,
                           std::span<const float> sink_logits) {
  return {.o = o.data,
          .o_token_stride = o.token_stride,
          .o_head_stride = o.head_stride,
          .lse = lse.data,
          .lse_token_stride = lse.token_stride,
          .lse_head_stride = lse.head_stride,
          .sink_logits = data_of(sink_logits),
          .format = format_of<O>,
          .value_dim = static_cast<int>(o.head_dim),
          .vectors = rows_are_aligned(o) ? 1 : 0};
}

template <class Q, class K, class V, class O>
forward_parameters forward_parameters_of(const forward_arguments<Q, K, V, O>& arguments,
                                         const device_plan& plan,
                                         const attention_options& options) {
  forward_parameters p{};
  p.q = as_device_view(arguments.q);
  p.q_format = format_of<Q>;
  p.k = as_device_view(arguments.k);
  p.v = as_device_view(arguments.v);
  p.out = output_rows_of(arguments.o, arguments.lse, arguments.sink_logits);
  p.lists = device_plan_access::lists(plan);
  p.plan_of_head = device_plan_access::plan_of_head(plan);
  p.parts = static_cast<int>(device_plan_access::most(plan).parts);
  p.items = static_cast<int>(device_plan_access::most(plan).items);
  p.query_tokens = static_cast<int>(plan.query_tokens());
  p.key_tokens = static_cast<int>(plan.key_tokens());
  p.group = arguments.k.heads > 0 ? static_cast<int>(arguments.q.heads / arguments.k.heads) : 1;
  p.query_heads = static_cast<int>(arguments.q.heads);
  p.form = score_form_of(blockattn::detail::resolved_scale(options.scale, arguments.q.head_dim),
                         options.softcap);
  return p;
}

/// Places of the partial results in a workspace.
struct part_layout {
  index_t values, rows, size;

  part_layout(const device_plan& plan, index_t heads, index_t columns) {
    const index_t all_rows = heads * device_plan_access::most(plan).parts * plan.shape().queries;
    blockattn::detail::workspace_layout layout;
    values = layout.take<float>(all_rows * columns);
    rows = layout.take<row_statistics>(all_rows);
    size = layout.size();
  }
};

/// Enqueues the kernels of a checked call.
template <storage_format Format, class Tuning>
void launch_forward(const char* function,
                    const forward_parameters& parameters,
                    index_t heads,
                    index_t splits,
                    cudaStream_t stream) {
  if (parameters.items == 0 || heads == 0) return;
  using cta = forward_cta<Format, Tuning>;
  const auto kernel = forward_kernel<Format, Tuning>;
  require_success(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, cta::shared_bytes),
      function, "reserving shared memory");
  const auto grid = static_cast<unsigned>(parameters.items * heads);
  kernel<<<grid, cta::threads, cta::shared_bytes, stream>>>(parameters);
  require_success(cudaGetLastError(), function, "the launch");
  if (splits == 0) return;
  const dim3 merge_grid(static_cast<unsigned>(splits), static_cast<unsigned>(heads),
                        Tuning::queries);
  launch_behind(function, merge_parts_kernel<Tuning>, merge_grid, merge_warps * 32, 0, stream,
                parameters);
}

}  // namespace detail

/// Bytes of device memory that `forward` needs for its partial results, aligned to
/// workspace_alignment: 0 when the plan cuts no row of tiles. Refuses head dims that the call
/// refuses.
inline index_t forward_workspace_size(const device_plan& plan,
                                      index_t head_dim,
                                      index_t value_dim) {
  constexpr const char* function = "cuda::forward_workspace_size";
  detail::check_device_head_dim(function, "q", head_dim);
  detail::check_device_head_dim(function, "v", value_dim);
  const index_t columns = detail::padded_columns(head_dim, value_dim);
  return detail::part_layout(plan, plan.query_heads(), columns).size;
}

/// Attention over the visible pairs of a plan (formula: reference::forward), fused, on tensor
/// cores:
///   o   = softmax(softcap(scale * q k^T) over visible keys [, sink logit]) v
///   lse = log of the softmax denominator, natural
/// All tensors, lse and sink_logits are device memory; shapes as in forward_arguments, strides of
/// any kind (fastest when every row begins at a multiple of 16 bytes). k and v are both bf16, both
/// fp16 or both fp32, q and o any of these; a q in another format than k is rounded to that of k,
/// once, to nearest even, as it is loaded (in fp16 to infinity from 65520 on). Products and sums
/// are in fp32; softmax weights are rounded to the format of v where that has 16 bits. Head dims:
/// multiples of 8 up to 256, k and v may differ; tuned for 64 and 128, others are padded to 64, 128
/// or 256. GQA: query_heads a multiple of kv_heads.
///
/// fp32 is multiplied as three products of TF32 numbers: a b is within 2^-21 |a b| of its value (in
/// the median of normal a and b within 2^-24.8), so results are about as accurate as those of fp32
/// arithmetic. Infinities in q, k and v, and magnitudes beyond 3.402e38, count as NaN then. Tiles
/// are 64 x 64, beyond head dim 128 32 x 32.
///
/// A row that sees nothing gets o = 0, lse = -inf (its sink logit with sink_logits). Keys that no
/// row sees may hold anything: they are not read. sink_logits must be finite or -inf, which is not
/// checked. Same inputs, same bits. A row's largest score is rounded to fp32 before it is taken
/// from the others: beyond 1e7 in magnitude the row's weights may overflow.
///
/// Only enqueues on `stream`, one of the current device; allocates nothing. Throws `error` on
/// shapes that disagree, a null view with elements, overlapping output rows, a bad option, a scale
/// or softcap that leaves fp32 in base 2, a plan of another size, number of heads or tile shape,
/// more than 65535 heads where the plan cuts rows, a small or misaligned workspace; nothing has
/// been enqueued then. Work: 2 (head_dim + value_dim) flops for each pair of a visited tile and
/// query head.
template <class Q = float, class K = Q, class V = K, class O = Q>
void forward(const forward_arguments<Q, K, V, O>& arguments,
             const device_plan& plan,
             const attention_options& options,
             std::span<std::byte> workspace,
             cudaStream_t stream) {
  constexpr const char* function = "cuda::forward";
  detail::check_forward_storage<Q, K, V, O>();
  detail::check_forward_call(function, arguments, plan, options);
  const auto launch = [&](auto tuning) {
    using tuning_type = decltype(tuning);
    const detail::part_layout parts(plan, arguments.q.heads, tuning_type::columns);
    blockattn::detail::check_workspace(function, workspace, parts.size);
    blockattn::detail::visit_memory(
        arguments, blockattn::detail::workspace_check(function, workspace, parts.size));
    detail::forward_parameters p = detail::forward_parameters_of(arguments, plan, options);
    p.part_values = blockattn::detail::piece<float>(workspace, parts.values);
    p.part_rows = blockattn::detail::piece<detail::row_statistics>(workspace, parts.rows);
    detail::launch_forward<format_of<V>, tuning_type>(
        function, p, arguments.q.heads, detail::device_plan_access::most(plan).splits, stream);
  };
  detail::with_forward_tuning<detail::stored_of<V>>(arguments.q.head_dim, arguments.v.head_dim,
                                                    plan.shape().queries, launch);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

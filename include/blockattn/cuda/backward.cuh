// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_checks.hpp>
#include <blockattn/cuda/backward_kernel.cuh>
#include <blockattn/cuda/backward_rows_kernel.cuh>
#include <blockattn/cuda/forward.cuh>
#include <limits>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

/// The tile shape of plans for `cuda::backward`, which `cuda::forward` takes too: 64 x 64. Build
/// them with {.transposed = true}.
constexpr tile_shape backward_tile_shape() noexcept { return {64, 64}; }

/// The same for any storage format: in fp32, beyond head dim 128, tiles are 32 x 32.
constexpr tile_shape backward_tile_shape(index_t head_dim,
                                         index_t value_dim,
                                         storage_format format) noexcept {
  return detail::with_backward_tuning(head_dim, value_dim, format, [](auto tuning) {
    return tile_shape{decltype(tuning)::side, decltype(tuning)::side};
  });
}

/// What a caller may ask of `backward` beside its arguments.
struct backward_mode {
  /// The same inputs give the same bits: d_q is not added up in memory in the order in which tiles
  /// happen to end, but by a kernel of its own that computes scores once more.
  bool deterministic = false;
};

namespace detail {

template <class Q, class K, class V, class O, class DQ, class DK, class DV>
constexpr void check_backward_storage() {
  static_assert(
      format_of<Q> == format_of<K> && format_of<K> == format_of<V> && format_of<V> == format_of<O>,
      "cuda::backward: q, k, v, o and d_o must have one storage format, bf16, fp16 or fp32");
  static_assert(format_of<Q> != storage_format::fp64,
                "cuda::backward: q, k, v, o and d_o must be bf16, fp16 or fp32, not fp64");
}

/// Everything that `cuda::backward` refuses. Reads no device memory.
template <class Q, class... Types>
void check_backward_call(const char* function,
                         const backward_arguments<Q, Types...>& arguments,
                         const device_plan& plan,
                         const attention_options& options) {
  using blockattn::detail::require;
  const auto& a = arguments;
  blockattn::detail::check_backward_shapes(function, a, options);
  check_device_head_dim(function, "q", a.q.head_dim);
  check_device_head_dim(function, "v", a.v.head_dim);
  require(plan.query_tokens() == a.q.tokens && plan.key_tokens() == a.k.tokens, function,
          ": the plan is for ", plan.query_tokens(), " queries x ", plan.key_tokens(),
          " keys, the arguments have ", a.q.tokens, " x ", a.k.tokens);
  require(plan.query_heads() == a.q.heads, function, ": the plan is for ", plan.query_heads(),
          " query heads but q has ", a.q.heads);
  const tile_shape shape = backward_tile_shape(a.q.head_dim, a.v.head_dim, format_of<Q>);
  require(plan.shape() == shape, function, ": the plan has tiles of ", plan.shape().queries, " x ",
          plan.shape().keys, ", must be ", shape.queries, " x ", shape.keys);
  require(plan.has_transposed(), function,
          ": the plan has no transposed tile lists; build it with {.transposed = true}");
  constexpr index_t most = std::numeric_limits<int>::max();
  const index_t rows = with_backward_tuning<stored_of<Q>>(
      a.q.head_dim, a.v.head_dim, [](auto tuning) { return decltype(tuning)::rows; });
  require(a.q.heads <= 65535, function, ": ", a.q.heads,
          " query heads are more than a launch takes");
  const index_t ctas = ceil_divide(a.q.tokens, rows) + ceil_divide(a.k.tokens, rows) + 2;
  const index_t heads = std::max(a.q.heads, a.k.heads);
  require(ctas * heads <= most, function, ": ", ctas, " runs of ", rows, " rows x ", heads,
          " heads are more than a launch takes");
}

template <class T>
gradient_rows as_gradient(const heads_view<T>& view) {
  return {.data = view.data,
          .token_stride = view.token_stride,
          .head_stride = view.head_stride,
          .format = format_of<T>,
          .head_dim = static_cast<int>(view.head_dim),
          .vectors = rows_are_aligned(view) ? 1 : 0};
}

/// What backward keeps for each query is there for whole tiles.
inline index_t padded_queries_of(const device_plan& plan) {
  return round_up(plan.query_tokens(), backward_tile_shape().queries);
}

template <class... Types>
backward_parameters backward_parameters_of(const backward_arguments<Types...>& a,
                                           const device_plan& plan,
                                           const attention_options& options) {
  backward_parameters p{};
  p.q = as_device_view(a.q);
  p.k = as_device_view(a.k);
  p.v = as_device_view(a.v);
  p.o = as_device_view(a.o);
  p.d_o = as_device_view(a.d_o);
  p.d_q = as_gradient(a.d_q);
  p.d_k = as_gradient(a.d_k);
  p.d_v = as_gradient(a.d_v);
  p.lse = a.lse.data;
  p.lse_token_stride = a.lse.token_stride;
  p.lse_head_stride = a.lse.head_stride;
  p.d_lse = a.d_lse.data;
  p.d_lse_token_stride = a.d_lse.token_stride;
  p.d_lse_head_stride = a.d_lse.head_stride;
  p.sink_logits = data_of(a.sink_logits);
  p.d_sink_logits = data_of(a.d_sink_logits);
  p.lists = device_plan_access::lists(plan);
  p.plan_of_head = device_plan_access::plan_of_head(plan);
  p.query_tokens = static_cast<int>(a.q.tokens);
  p.key_tokens = static_cast<int>(a.k.tokens);
  p.query_heads = static_cast<int>(a.q.heads);
  p.kv_heads = static_cast<int>(a.k.heads);
  p.padded_queries = static_cast<int>(padded_queries_of(plan));
  p.group = a.k.heads > 0 ? static_cast<int>(a.q.heads / a.k.heads) : 1;
  constexpr double log2_e = 1.4426950408889634;
  const double scale = blockattn::detail::resolved_scale(options.scale, a.q.head_dim);
  p.scale = static_cast<float>(scale);
  // A scale so small that fp32 holds scale / softcap as 0 leaves scores that no cap bends.
  p.softcap_factor = options.softcap > 0 ? static_cast<float>(scale / options.softcap) : 0.0F;
  p.exponent = static_cast<float>((p.softcap_factor != 0 ? options.softcap : scale) * log2_e);
  return p;
}

/// Where the pieces of the workspace lie.
struct backward_workspace {
  index_t rows, sums, size;
  int sum_columns;  ///< of the sums of d_q; 0 when there are none

  backward_workspace(const device_plan& plan,
                     index_t head_dim,
                     index_t value_dim,
                     storage_format format,
                     const backward_mode& mode)
      : sum_columns(with_backward_tuning(head_dim, value_dim, format, [&mode](auto tuning) {
          using tuning_type = decltype(tuning);
          return tuning_type::sums_query_gradient && !mode.deterministic ? tuning_type::columns : 0;
        })) {
    const index_t padded_rows = plan.query_heads() * padded_queries_of(plan);
    blockattn::detail::workspace_layout layout;
    rows = layout.take<float2>(padded_rows);
    sums = layout.take<float4>(padded_rows * sum_columns / 4);
    size = layout.size();
  }
};

/// Enqueues the kernels of a checked call.
template <storage_format Format, class Tuning>
void launch_backward(const char* function, const backward_parameters& p, cudaStream_t stream) {
  const auto launch = [&](auto kernel, const dim3& grid, int threads, int shared_bytes) {
    if (grid.x == 0 || grid.y == 0) return;
    require_success(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        function, "reserving shared memory");
    kernel<<<grid, static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes),
             stream>>>(p);
    require_success(cudaGetLastError(), function, "a launch");
  };
  const auto heads = static_cast<unsigned>(p.query_heads);
  constexpr int threads = backward_warp<Tuning>::threads;
  const auto runs_of = [](int tokens) {
    return static_cast<unsigned>(round_up(tokens, Tuning::side) / Tuning::rows);
  };
  launch(backward_rows_kernel<Format>,
         dim3(static_cast<unsigned>(p.padded_queries / backward_row_group::rows_per_cta), heads),
         backward_row_group::threads, 0);
  const auto launch_keys = [&](auto query_gradient) {
    using query_gradient_type = decltype(query_gradient);
    launch(backward_key_kernel<Format, Tuning, query_gradient_type>,
           dim3(runs_of(p.key_tokens) * static_cast<unsigned>(p.kv_heads)), threads,
           backward_key_cta<Format, Tuning, query_gradient_type>::shared_bytes);
  };
  bool is_summed = false;
  if constexpr (Tuning::sums_query_gradient) {
    is_summed = p.sum_columns > 0;
    if (is_summed) {
      using query_gradient = query_gradient_sums<Format, Tuning>;
      launch_keys(query_gradient{});
      launch(round_query_gradient_kernel<Format, Tuning>,
             dim3(static_cast<unsigned>(p.padded_queries / Tuning::side), heads),
             query_gradient::write_threads, 0);
    }
  }
  if (!is_summed) {
    launch_keys(no_query_gradient{});
    launch(backward_query_kernel<Format, Tuning>, dim3(runs_of(p.query_tokens) * heads), threads,
           backward_query_cta<Format, Tuning>::shared_bytes);
  }
  if (p.d_sink_logits != nullptr) launch(backward_sink_kernel<256>, dim3(heads), 256, 0);
}

}  // namespace detail

/// Bytes of device memory that `backward` needs, aligned to workspace_alignment: for each query
/// token, rounded up to a tile, and head 8; unless it is deterministic, for 16-bit formats and head
/// dims up to 128, 4 x 64 or 4 x 128 more, as head_dim and value_dim need. Refuses head dims that
/// the call refuses.
inline index_t backward_workspace_size(const device_plan& plan,
                                       index_t head_dim,
                                       index_t value_dim,
                                       storage_format format,
                                       const backward_mode& mode = {}) {
  constexpr const char* function = "cuda::backward_workspace_size";
  detail::check_device_head_dim(function, "q", head_dim);
  detail::check_device_head_dim(function, "v", value_dim);
  return detail::backward_workspace(plan, head_dim, value_dim, format, mode).size;
}

/// The gradients of `forward` (formula: reference::backward), fused, on tensor cores:
///   d_q, d_k, d_v and, when wanted, d_sink_logits, each `=`.
/// All tensors are device memory; shapes as in backward_arguments, strides of any kind. q, k, v, o
/// and d_o are all bf16, all fp16 or all fp32, gradients any of these. Products and sums are in
/// fp32; weights and gradients of scores are rounded to the format of q, where that has 16 bits,
/// before they are multiplied. fp32 is multiplied as in `forward`. Head dims: multiples of 8 up to
/// 256, k and v may differ; tuned for 64 and 128 in 16 bits.
///
/// In 16 bits up to head dim 128 one kernel computes all three gradients from scores that are
/// formed once, five products for each pair of tiles. It adds up d_q in memory, in fp32 and in the
/// order in which tiles end: the last bits of d_q differ from call to call. With
/// {.deterministic = true}, and for other formats and head dims always, d_q has a kernel of its
/// own: the same inputs give the same bits, for seven products (eleven beyond head dim 128 and in
/// fp32 beyond 64, where two warps form the same scores, nineteen in fp32 beyond 128); on an H100
/// up to 1.3 times the time. Keys that no row sees get gradients 0; neither they nor queries that
/// see nothing need hold numbers. A row that sees one key has gradients of scores of 0 in exact
/// arithmetic and on the CPU; here they are the difference of two sums that round differently, at
/// most 2^-18 of sum |d_o v|, and so d_q and d_k of such rows are small but not 0.
///
/// Only enqueues on `stream`, one of the current device; allocates nothing. The plan has tiles of
/// backward_tile_shape(head_dim, value_dim, format) and its transposed lists. Throws `error` on
/// shapes that disagree, a missing lse, a null view with elements, overlapping gradients, a bad
/// option, a scale or softcap that leaves fp32 in base 2, a plan of another size, number of heads
/// or tile shape, more than 65535 query heads, a small or misaligned workspace; nothing has been
/// enqueued then.
template <class Q = float,
          class K = Q,
          class V = K,
          class O = Q,
          class DQ = Q,
          class DK = K,
          class DV = V>
void backward(const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
              const device_plan& plan,
              const attention_options& options,
              std::span<std::byte> workspace,
              cudaStream_t stream,
              const backward_mode& mode = {}) {
  constexpr const char* function = "cuda::backward";
  detail::check_backward_storage<Q, K, V, O, DQ, DK, DV>();
  detail::check_backward_call(function, arguments, plan, options);
  const index_t head_dim = arguments.q.head_dim;
  const index_t value_dim = arguments.v.head_dim;
  const detail::backward_workspace places(plan, head_dim, value_dim, format_of<Q>, mode);
  blockattn::detail::check_workspace(function, workspace, places.size);
  blockattn::detail::visit_memory(
      arguments, blockattn::detail::workspace_check(function, workspace, places.size));
  detail::backward_parameters p = detail::backward_parameters_of(arguments, plan, options);
  p.rows = blockattn::detail::piece<float2>(workspace, places.rows);
  p.d_q_sums = reinterpret_cast<float*>(blockattn::detail::piece<float4>(workspace, places.sums));
  p.sum_columns = places.sum_columns;
  detail::with_backward_tuning<detail::stored_of<Q>>(head_dim, value_dim, [&](auto tuning) {
    detail::launch_backward<format_of<Q>, decltype(tuning)>(function, p, stream);
  });
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

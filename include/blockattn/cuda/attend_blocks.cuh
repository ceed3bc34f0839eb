// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_checks.hpp>
#include <blockattn/cuda/attend_kernel.cuh>
#include <blockattn/cuda/attend_packer.cuh>
#include <blockattn/cuda/forward.cuh>
#include <limits>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

/// Memory of an attend_blocks call, in bytes.
struct attend_sizes {
  index_t workspace;  ///< device memory, aligned to workspace_alignment
  /// Host memory, aligned to 16; 0 for short lists. Page-locked, or the copy waits.
  index_t staging;
};

namespace detail {

template <class Q, class K, class V, class O>
constexpr void check_attend_storage() {
  static_assert(format_of<Q> == format_of<K> && format_of<K> == format_of<V>,
                "cuda::attend_blocks: q, k and v must have one storage format, bf16 or fp16");
  static_assert(format_of<Q> == storage_format::bf16 || format_of<Q> == storage_format::fp16,
                "cuda::attend_blocks: q, k and v must be bf16 or fp16, not fp32 or fp64");
  static_assert(format_of<O> != storage_format::fp64, "cuda::attend_blocks: o must not be fp64");
}

/// Everything that `cuda::attend_blocks` refuses. Reads no device memory. Returns the number of kv
/// heads.
template <class Q, class K, class V, class O>
index_t check_attend_call(const char* function,
                          const attend_arguments<Q, K, V, O>& arguments,
                          const attend_options& options) {
  using blockattn::detail::require;
  const index_t kv_heads = blockattn::detail::check_attend_shapes(function, arguments, options);
  check_device_head_dim(function, "q", arguments.q.head_dim);
  check_device_head_dim(function, "o", arguments.o.head_dim);
  constexpr index_t most = index_t{1} << 30;
  require(arguments.q.tokens < most / std::max<index_t>(1, arguments.q.heads), function, ": q has ",
          arguments.q.tokens, " tokens x ", arguments.q.heads, " heads, must be below 2^30");
  require(kv_heads <= 65535, function, ": ", kv_heads, " kv heads are more than a launch takes");
  index_t number = 0;
  for (const auto& sequence : arguments.sequences) {
    index_t keys = 0;
    const auto look_at = [&](const key_segment<K, V>& segment) {
      require(segment.log_weight == -std::numeric_limits<double>::infinity() ||
                  blockattn::detail::is_finite_in_base_2<float>(segment.log_weight),
              function, ": sequence ", number, ": log_weight ", segment.log_weight,
              " is beyond fp32 in base 2");
      require(segment.k.tokens < most && keys + segment.k.tokens < most, function, ": sequence ",
              number, " has ", keys, " + ", segment.k.tokens, " keys, must be below 2^30");
      keys += segment.k.tokens;
    };
    for (const auto& segment : sequence.segments) look_at(segment);
    look_at(sequence.tail);
    ++number;
  }
  return kv_heads;
}

/// The tables of a checked call. Refuses more items than a launch takes.
template <class Q, class K, class V, class O>
attend_packer<K, V> pack_attend(const char* function,
                                const attend_arguments<Q, K, V, O>& arguments,
                                const attend_options& options,
                                index_t kv_heads) {
  attend_packer<K, V> packer(
      arguments.sequences,
      {.kv_heads = kv_heads,
       .group_heads = arguments.q.heads / kv_heads,
       .columns = attend_columns(arguments.q.head_dim, arguments.o.head_dim),
       .scale = blockattn::detail::resolved_scale(options.scale, arguments.q.head_dim),
       .softcap = options.softcap});
  for (int row_class = 0; row_class < attend_row_classes; ++row_class) {
    const index_t items = packer.of_class(row_class).items;
    blockattn::detail::require(items * kv_heads <= std::numeric_limits<int>::max(), function, ": ",
                               items, " items x ", kv_heads,
                               " kv heads are more than a launch takes");
  }
  return packer;
}

template <class Q, class K, class V, class O>
attend_parameters attend_parameters_of(const attend_arguments<Q, K, V, O>& arguments,
                                       const attend_options& options,
                                       index_t kv_heads) {
  attend_parameters p{};
  const device_view q = as_device_view(arguments.q);
  p.q = static_cast<const std::uint16_t*>(q.data);
  p.q_token_stride = q.token_stride;
  p.q_head_stride = q.head_stride;
  p.out = output_rows_of(arguments.o, arguments.lse, arguments.sink_logits);
  p.kv_heads = static_cast<int>(kv_heads);
  p.group_heads = static_cast<int>(arguments.q.heads / kv_heads);
  p.head_dim = static_cast<int>(arguments.q.head_dim);
  p.value_dim = static_cast<int>(arguments.o.head_dim);
  bool vectors = rows_are_aligned(arguments.q);
  bool turns = false;
  const auto look_at = [&](const key_segment<K, V>& segment) {
    if (segment.k.tokens == 0) return;
    turns = turns || segment.query_shift != 0;
    vectors = vectors && rows_are_aligned(segment.k) && rows_are_aligned(segment.v);
  };
  for (const auto& sequence : arguments.sequences) {
    look_at(sequence.tail);
    for (const auto& segment : sequence.segments) look_at(segment);
  }
  p.vectors = vectors ? 1 : 0;
  if (turns) p.turn = device_rope(*options.rope);
  return p;
}

/// Bytes of host memory that must last until tables of `size` bytes are on the device.
constexpr index_t staging_of(index_t size) {
  return size <= attend_parameters::most_image_bytes ? 0 : size;
}

/// Writes a call's tables to its kernels' parameters or, through `staging`, to the front of its
/// workspace.
template <class Packer>
void send_tables(const char* function,
                 const Packer& packer,
                 std::span<std::byte> workspace,
                 std::span<std::byte> staging,
                 cudaStream_t stream,
                 attend_parameters& p) {
  const index_t size = packer.table_size();
  if (staging_of(size) == 0) {
    packer.write({p.image, sizeof p.image});
    return;
  }
  packer.write(staging);
  p.tables = workspace.data();
  require_success(cudaMemcpyAsync(workspace.data(), staging.data(), static_cast<std::size_t>(size),
                                  cudaMemcpyHostToDevice, stream),
                  function, "the copy of tables");
}

/// Enqueues the kernels of one row class.
template <storage_format Format, class Tuning, class Counts>
void launch_attend(const char* function,
                   const attend_parameters& p,
                   const Counts& counts,
                   cudaStream_t stream) {
  if (counts.items == 0) return;
  using cta = attend_cta<Format, Tuning>;
  const auto kernel = attend_kernel<Format, Tuning>;
  require_success(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, cta::shared_bytes),
      function, "reserving shared memory");
  launch_behind(function, kernel, dim3(static_cast<unsigned>(counts.items * p.kv_heads)),
                cta::threads, cta::shared_bytes, stream, p);
  if (counts.splits == 0) return;
  const dim3 grid(static_cast<unsigned>(counts.splits), static_cast<unsigned>(p.kv_heads),
                  Tuning::rows);
  launch_behind(function, attend_merge_kernel<Tuning>, grid, merge_warps * 32, 0, stream, p);
}

}  // namespace detail

/// The memory that `attend_blocks` needs for a call. Throws what it throws. O(segments x row
/// tiles).
template <class Q, class K = Q, class V = K, class O = Q>
attend_sizes attend_memory(const attend_arguments<Q, K, V, O>& arguments,
                           const attend_options& options = {}) {
  detail::check_attend_storage<Q, K, V, O>();
  constexpr const char* function = "cuda::attend_memory";
  const index_t kv_heads = detail::check_attend_call(function, arguments, options);
  const auto packer = detail::pack_attend(function, arguments, options, kv_heads);
  return {packer.size(), detail::staging_of(packer.table_size())};
}

/// Attention of new queries to keys that stay where they are: cached blocks, pages, a shared
/// prefix, and the sequence's own growing tail (formula: key_segment, cpu::attend_blocks). For each
/// sequence, query and head
///   o, lse = softmax over the keys of all its segments and
///            the visible part of its tail [, sink logit]
/// q, o, lse, sink_logits and the data of all segments are device memory; the lists of sequences
/// and segments are host memory and free when the call returns. q, k and v are all bf16 or all
/// fp16, o bf16, fp16 or fp32; head dims multiples of 8 up to 256. Products and sums are in fp32,
/// softmax weights and queries that are turned by a query_shift are rounded to the format of q.
/// Strides of any kind; fastest when every row begins at a multiple of 16 bytes.
///
/// The query heads of a kv head and the queries of a sequence are rows of one tile (of 16, or of
/// 128; 64 with head dims above 128), so that keys are read once for all of them; neighbouring
/// segments with equal partition, query_shift and score_scale are one axis of keys, so that pages
/// of any size fill tiles; long lists of keys are cut and merged, at places that depend on the
/// call's shapes and lists alone (other sequences of the call included): same inputs, same bits.
///
/// Enqueues at most four kernels on `stream`, and, when the call has too many segments for a
/// kernel's parameters (12 KiB of tables: 96 bytes for each segment with a shift of its own, 48
/// for each cut), a copy of tables from `staging` before them: it must not change before the copy
/// is done, nor before the last replay of a graph that captured it. Allocates no device memory; on
/// the host a few lists as long as the groups of segments. Throws `error` on everything that
/// cpu::attend_blocks refuses but bad sink logits, which are on the device; on 2^30 keys or more in
/// a sequence, 2^30 query tokens x heads, more kv heads than 65535, a score_scale or log_weight
/// that leaves fp32, and memory that is too small or misaligned; nothing has been enqueued then.
/// Host work: O(segments x row tiles).
template <class Q, class K = Q, class V = K, class O = Q>
void attend_blocks(const attend_arguments<Q, K, V, O>& arguments,
                   const attend_options& options,
                   std::span<std::byte> workspace,
                   std::span<std::byte> staging,
                   cudaStream_t stream) {
  constexpr const char* function = "cuda::attend_blocks";
  detail::check_attend_storage<Q, K, V, O>();
  const index_t kv_heads = detail::check_attend_call(function, arguments, options);
  const auto packer = detail::pack_attend(function, arguments, options, kv_heads);
  blockattn::detail::check_workspace(function, workspace, packer.size());
  blockattn::detail::visit_memory(
      arguments, blockattn::detail::workspace_check(function, workspace, packer.size()));
  const index_t staged = detail::staging_of(packer.table_size());
  blockattn::detail::check_memory(function, "staging", staging, staged, detail::staging_alignment);
  if (arguments.q.heads == 0 || packer.table_size() == 0) return;
  detail::attend_parameters p = detail::attend_parameters_of(arguments, options, kv_heads);
  packer.describe_parts(workspace, p);
  detail::send_tables(function, packer, workspace, staging, stream, p);
  const index_t columns = detail::attend_columns(p.head_dim, p.value_dim);
  for (int row_class = 0; row_class < detail::attend_row_classes; ++row_class) {
    p.at = packer.places(row_class);
    detail::with_attend_tuning(columns, row_class, [&](auto tuning) {
      detail::launch_attend<format_of<K>, decltype(tuning)>(function, p, packer.of_class(row_class),
                                                            stream);
    });
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

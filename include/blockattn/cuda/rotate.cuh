// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/rotate_kernel.cuh>
#include <blockattn/cuda/runtime.cuh>
#include <blockattn/rope/rope_checks.hpp>

/// \file
/// The rotations of rope/ on a device: rotate, rotate_backward and reposition. Rows and positions
/// are device memory, the rope is the host's and free when a call returns. Storage fp32, bf16 or
/// fp16; strides of any kind, fastest when every row begins at a multiple of 16 bytes and
/// rotary_dim is a multiple of 16. Angles are reduced exactly, in integers and fp64, as on the CPU;
/// products are in fp32, with one rounding to the storage of the result. Same inputs, same bits.
///
/// Calls only enqueue one kernel on `stream` and allocate nothing. They throw `error` on shapes or
/// a head_dim that disagree, rows that overlap, another number of positions, a rotary_dim beyond
/// 256; nothing has been enqueued then. Positions must be finite and at most max_rope_position in
/// magnitude, which is not checked where they are device memory. Bound by memory.

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// Where the rows of a call turn to.
struct rotation_target {
  const double* positions = nullptr;  ///< device memory, (tokens) or null
  double position = 0;                ///< of all tokens, where positions is null
  double sign = 1;
  double factor = 1;
};

/// Everything that the calls refuse, positions apart. Reads no device memory.
template <class In, class Out>
void check_rotate_call(const char* function,
                       const rope& rotation,
                       const heads_view<In>& in,
                       const heads_view<Out>& out,
                       const char* in_name = "in",
                       const char* out_name = "out") {
  static_assert(format_of<In> != storage_format::fp64 && format_of<Out> != storage_format::fp64,
                "cuda: rows that rotate must not be fp64");
  blockattn::detail::check_rope_rows(function, rotation, in, out, in_name, out_name);
  using blockattn::detail::require;
  require(rotation.pairs() <= device_rope::most_pairs, function, ": rotary_dim is ",
          rotation.rotary_dim(), ", on a device it is at most ", 2 * device_rope::most_pairs);
  constexpr index_t most_values = index_t{1} << 24;
  require(in.head_dim <= most_values, function, ": head_dim is ", in.head_dim,
          ", on a device it is at most ", most_values);
  split_rows(function, in.tokens, in.heads, in.head_dim);
}

/// Enqueues a checked call.
template <class In, class Out>
void launch_rotate(const char* function,
                   const rope& rotation,
                   const heads_view<In>& in,
                   const heads_view<Out>& out,
                   const rotation_target& target,
                   cudaStream_t stream) {
  if (in.tokens * in.heads == 0) return;
  constexpr storage_format in_format = format_of<In>;
  constexpr storage_format out_format = format_of<Out>;
  const bool in_place = in_format == out_format && static_cast<const void*>(in.data) == out.data;
  const bool aligned =
      rows_are_aligned(in) && rows_are_aligned(out) && rotation.pairs() % chunk_size == 0;
  const rotate_parameters<in_format, out_format> parameters{
      .in = as_device_rows(heads_view<const In>(in)),
      .out = as_device_rows(out),
      .positions = target.positions,
      .position = target.position,
      .sign = target.sign,
      .factor = target.factor,
      .tokens = static_cast<int>(in.tokens),
      .heads = static_cast<int>(in.heads),
      .head_dim = static_cast<int>(in.head_dim),
      .vectors = aligned ? 1 : 0,
      .copies_rest = in_place ? 0 : 1,
      .turn = device_rope(rotation)};
  const index_t ctas =
      ceil_divide(in.tokens, index_t{rotate_tokens}) * ceil_divide(in.heads, index_t{rotate_heads});
  rotate_kernel<in_format, out_format>
      <<<static_cast<unsigned>(ctas), row_threads, 0, stream>>>(parameters);
  require_success(cudaGetLastError(), function, "the launch");
}

}  // namespace detail

/// out[t] = R_p in[t] with p = positions[t] and R = m * U (see rope), for every head, as
/// blockattn::rotate.
///
/// \param in         (tokens, heads, head_dim)
/// \param out        (tokens, heads, head_dim), written; the same rows as `in` or no overlap
/// \param positions  (tokens), device memory; any order, may repeat, be negative or fractional
template <storage_scalar In, storage_scalar Out>
void rotate(const rope& rotation,
            const heads_view<In>& in,
            const heads_view<Out>& out,
            std::span<const double> positions,
            cudaStream_t stream) {
  constexpr const char* function = "cuda::rotate";
  detail::check_rotate_call(function, rotation, in, out);
  blockattn::detail::check_rope_position_span(function, "positions", positions, out);
  detail::launch_rotate(function, rotation, in, out,
                        {.positions = positions.data(), .factor = rotation.attention_factor()},
                        stream);
}

/// rotate in place.
template <storage_scalar T>
void rotate(const rope& rotation,
            const heads_view<T>& rows,
            std::span<const double> positions,
            cudaStream_t stream) {
  rotate(rotation, rows, rows, positions, stream);
}

/// The adjoint of rotate: d_in[t] = R_p^T d_out[t], as blockattn::rotate_backward.
///
/// \param d_out      (tokens, heads, head_dim) gradient of the rotated rows
/// \param d_in       (tokens, heads, head_dim), written; the same rows as `d_out` or no overlap
/// \param positions  (tokens), device memory, as rotate had them
template <storage_scalar DOut, storage_scalar DIn>
void rotate_backward(const rope& rotation,
                     const heads_view<DOut>& d_out,
                     const heads_view<DIn>& d_in,
                     std::span<const double> positions,
                     cudaStream_t stream) {
  constexpr const char* function = "cuda::rotate_backward";
  detail::check_rotate_call(function, rotation, d_out, d_in, "d_out", "d_in");
  blockattn::detail::check_rope_position_span(function, "positions", positions, d_in, "d_in");
  detail::launch_rotate(
      function, rotation, d_out, d_in,
      {.positions = positions.data(), .sign = -1, .factor = rotation.attention_factor()}, stream);
}

/// rotate_backward in place.
template <storage_scalar T>
void rotate_backward(const rope& rotation,
                     const heads_view<T>& rows,
                     std::span<const double> positions,
                     cudaStream_t stream) {
  rotate_backward(rotation, rows, rows, positions, stream);
}

/// Moves rows that were rotated for position p to p + delta, in place and without the magnitude m,
/// as blockattn::reposition. Inverse and adjoint are both reposition by -delta.
///
/// \param rows   (tokens, heads, head_dim), read and written
/// \param delta  any sign, may be fractional; |delta| <= max_rope_position, which is checked
template <storage_scalar T>
void reposition(const rope& rotation,
                const heads_view<T>& rows,
                double delta,
                cudaStream_t stream) {
  constexpr const char* function = "cuda::reposition";
  detail::check_rotate_call(function, rotation, rows, rows);
  blockattn::detail::check_rope_position(function, "delta", 0, delta);
  detail::launch_rotate(function, rotation, rows, rows, {.position = delta}, stream);
}

/// reposition with one delta for each token.
/// \param deltas  (tokens), device memory
template <storage_scalar T>
void reposition(const rope& rotation,
                const heads_view<T>& rows,
                std::span<const double> deltas,
                cudaStream_t stream) {
  constexpr const char* function = "cuda::reposition";
  detail::check_rotate_call(function, rotation, rows, rows);
  blockattn::detail::check_rope_position_span(function, "deltas", deltas, rows, "rows");
  detail::launch_rotate(function, rotation, rows, rows, {.positions = deltas.data()}, stream);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/scatter_rows_kernel.cuh>
#include <blockattn/layout/scatter_rows_backward.hpp>

/// \file
/// scatter_rows and gather_rows of layout/ and their adjoints, on a device. Layouts are uploaded
/// once (upload_layout), spans are device memory. Calls only enqueue kernels on `stream` and
/// allocate nothing. They throw `error` on a span of another size, overlap, columns < 1, 2^31 rows or more;
/// nothing has been enqueued then. Bound by memory.

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// Enqueues copies in the widest words that divide rows and addresses.
inline void launch_copy_rows(const char* function,
                             copy_rows_parameters parameters,
                             index_t rows,
                             index_t columns,
                             std::size_t value_bytes,
                             cudaStream_t stream) {
  if (rows == 0) return;  // then columns may be any number
  const index_t row_bytes = columns * static_cast<index_t>(value_bytes);
  parameters.split = split_rows(function, rows, 1, row_bytes);
  const auto launch = [&]<class Word>(Word) {
    parameters.words = row_bytes / static_cast<index_t>(sizeof(Word));
    copy_rows_kernel<Word><<<parameters.split.ctas(), row_threads, 0, stream>>>(parameters);
    require_success(cudaGetLastError(), function, "the launch");
  };
  const auto address = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer);
  };
  const std::uintptr_t unit = address(parameters.from) | address(parameters.sinks) |
                              address(parameters.to) | static_cast<std::uintptr_t>(row_bytes);
  if (unit % 16 == 0) return launch(uint4{});
  if (unit % 4 == 0) return launch(std::uint32_t{});
  if (unit % 2 == 0) return launch(std::uint16_t{});
  launch(std::uint8_t{});
}

/// What the kernels of gradients share.
template <class In, class Out>
auto gradient_parameters(const char* function,
                         const device_layout& layout,
                         row_origin origin,
                         std::span<const In> from,
                         std::span<Out> to,
                         index_t columns,
                         gradient_write write) {
  static_assert(format_of<In> != storage_format::fp64 && format_of<Out> != storage_format::fp64,
                "cuda: gradients of rows must not be fp64");
  const index_t rows = std::ssize(to) / columns;
  const bool aligned = rows_are_aligned(token_major(from.data(), 1, 1, columns)) &&
                       rows_are_aligned(token_major(to.data(), 1, 1, columns));
  return gradient_rows_parameters<format_of<In>, format_of<Out>>{
      .map = device_layout_access::map(layout),
      .origin = origin,
      .from = reinterpret_cast<const stored_bits<format_of<In>>*>(from.data()),
      .to = reinterpret_cast<stored_bits<format_of<Out>>*>(to.data()),
      .columns = columns,
      .sets = device_layout_access::sink_sets(layout),
      .write = write,
      .vectors = aligned ? 1 : 0,
      .split = split_rows(function, rows, 1, columns)};
}

template <storage_format In, storage_format Out>
void launch_gradient_rows(const char* function,
                          const gradient_rows_parameters<In, Out>& parameters,
                          cudaStream_t stream) {
  if (parameters.split.rows == 0) return;
  gradient_rows_kernel<In, Out><<<parameters.split.ctas(), row_threads, 0, stream>>>(parameters);
  require_success(cudaGetLastError(), function, "the launch");
}

template <storage_format In, storage_format Out>
void launch_sum_sinks(const char* function,
                      const gradient_rows_parameters<In, Out>& parameters,
                      cudaStream_t stream) {
  if (parameters.split.rows == 0) return;
  const index_t ctas =
      parameters.split.rows * ceil_divide(parameters.columns, index_t{32 * chunk_size});
  sum_sinks_kernel<In, Out>
      <<<static_cast<unsigned>(ctas), sink_sum_warps * 32, 0, stream>>>(parameters);
  require_success(cudaGetLastError(), function, "the launch of the sinks' sum");
}

template <class DOut, class DSource, class DSinks>
void scatter_rows_adjoint(const char* function,
                          gradient_write write,
                          const device_layout& layout,
                          std::span<const DOut> d_out,
                          std::span<DSource> d_source_rows,
                          std::span<DSinks> d_sink_rows,
                          index_t columns,
                          cudaStream_t stream) {
  blockattn::detail::check_scatter_rows_backward(function, layout, d_out, d_source_rows,
                                                 d_sink_rows, columns);
  const bool one_set = blockattn::detail::holds_rows(
      d_sink_rows.size(), layout.sink_options().tokens_per_block, columns);
  const auto sources = gradient_parameters(function, layout, row_origin::token, d_out,
                                           d_source_rows, columns, write);
  const auto sinks =
      gradient_parameters(function, layout, row_origin::sink, d_out, d_sink_rows, columns, write);
  launch_gradient_rows(function, sources, stream);
  if (one_set) {
    launch_sum_sinks(function, sinks, stream);
  } else {
    launch_gradient_rows(function, sinks, stream);
  }
}

template <class DOut, class DRows>
void gather_rows_adjoint(const char* function,
                         gradient_write write,
                         const device_layout& layout,
                         std::span<const DOut> d_out,
                         std::span<DRows> d_rows,
                         index_t columns,
                         cudaStream_t stream) {
  blockattn::detail::check_gather_rows_backward(function, layout, d_out, d_rows, columns);
  launch_gradient_rows(
      function,
      gradient_parameters(function, layout, row_origin::any_token, d_out, d_rows, columns, write),
      stream);
}

}  // namespace detail

/// Writes rows of the source axis and sink rows to their places on the axis of the layout, as
/// blockattn::scatter_rows: out[token_of(j)] = source_rows[j]; out[sink] = its sink row. Rows are
/// token ids (columns = 1), embeddings or anything trivially copyable.
///
/// \param source_rows (source_tokens, columns)
/// \param sink_rows (tokens_per_block, columns), the same set everywhere; or (all sinks, columns),
///   in axis order. Empty for a layout without sinks.
/// \param out (tokens, columns), written; must not overlap the inputs
template <class T>
void scatter_rows(const device_layout& layout,
                  std::type_identity_t<std::span<const T>> source_rows,
                  std::type_identity_t<std::span<const T>> sink_rows,
                  std::span<T> out,
                  index_t columns,
                  cudaStream_t stream) {
  static_assert(std::is_trivially_copyable_v<T>);
  constexpr const char* function = "cuda::scatter_rows";
  blockattn::detail::check_scatter_rows(function, layout, source_rows, sink_rows, out, columns);
  const bool one_set = blockattn::detail::holds_rows(
      sink_rows.size(), layout.sink_options().tokens_per_block, columns);
  detail::launch_copy_rows(function,
                           {.map = detail::device_layout_access::map(layout),
                            .origin = detail::row_origin::any_token,
                            .from = source_rows.data(),
                            .sinks = sink_rows.data(),
                            .to = out.data(),
                            .words = 0,
                            .sinks_are_one_set = one_set ? 1 : 0,
                            .split = {}},
                           layout.tokens(), columns, sizeof(T), stream);
}

/// Reads the rows of the source axis back, as blockattn::gather_rows: out[j] = rows[token_of(j)].
///
/// \param rows (tokens, columns)
/// \param out (source_tokens, columns), written; must not overlap `rows`
template <class T>
void gather_rows(const device_layout& layout,
                 std::type_identity_t<std::span<const T>> rows,
                 std::span<T> out,
                 index_t columns,
                 cudaStream_t stream) {
  static_assert(std::is_trivially_copyable_v<T>);
  constexpr const char* function = "cuda::gather_rows";
  blockattn::detail::check_gather_rows(function, layout, rows, out, columns);
  detail::launch_copy_rows(function,
                           {.map = detail::device_layout_access::map(layout),
                            .origin = detail::row_origin::token,
                            .from = rows.data(),
                            .sinks = nullptr,
                            .to = out.data(),
                            .words = 0,
                            .sinks_are_one_set = 0,
                            .split = {}},
                           layout.source_tokens(), columns, sizeof(T), stream);
}

/// The adjoint of scatter_rows, as blockattn::scatter_rows_backward:
///
///     d_source_rows[j] = d_out[token_of(j)]
///     d_sink_rows[r]   = sum over all sets of d_out[sink r of the set]   (one set), or
///     d_sink_rows[s]   = d_out[sink s]                                   (all sinks)
///
/// Storage fp32, bf16 or fp16, each role its own; sums are in fp32, in an order that depends on the
/// layout alone, with one rounding to the storage of the result.
///
/// \param d_out (tokens, columns)
/// \param d_source_rows (source_tokens, columns), written; empty: not wanted
/// \param d_sink_rows (tokens_per_block, columns) or (all sinks, columns), written; empty: not
///   wanted
template <storage_scalar DOut, storage_scalar DSource, storage_scalar DSinks>
void scatter_rows_backward(const device_layout& layout,
                           std::span<const DOut> d_out,
                           std::span<DSource> d_source_rows,
                           std::span<DSinks> d_sink_rows,
                           index_t columns,
                           cudaStream_t stream) {
  detail::scatter_rows_adjoint("cuda::scatter_rows_backward", detail::gradient_write::assign,
                               layout, d_out, d_source_rows, d_sink_rows, columns, stream);
}

/// scatter_rows_backward, adding to d_source_rows and d_sink_rows.
template <storage_scalar DOut, storage_scalar DSource, storage_scalar DSinks>
void scatter_rows_backward_accumulate(const device_layout& layout,
                                      std::span<const DOut> d_out,
                                      std::span<DSource> d_source_rows,
                                      std::span<DSinks> d_sink_rows,
                                      index_t columns,
                                      cudaStream_t stream) {
  detail::scatter_rows_adjoint("cuda::scatter_rows_backward_accumulate",
                               detail::gradient_write::accumulate, layout, d_out, d_source_rows,
                               d_sink_rows, columns, stream);
}

/// The adjoint of gather_rows, as blockattn::gather_rows_backward: d_rows[token_of(j)] = d_out[j];
/// rows of sinks get 0.
///
/// \param d_out (source_tokens, columns)
/// \param d_rows (tokens, columns), written
template <storage_scalar DOut, storage_scalar DRows>
void gather_rows_backward(const device_layout& layout,
                          std::span<const DOut> d_out,
                          std::span<DRows> d_rows,
                          index_t columns,
                          cudaStream_t stream) {
  detail::gather_rows_adjoint("cuda::gather_rows_backward", detail::gradient_write::assign, layout,
                              d_out, d_rows, columns, stream);
}

/// gather_rows_backward, adding to d_rows.
template <storage_scalar DOut, storage_scalar DRows>
void gather_rows_backward_accumulate(const device_layout& layout,
                                     std::span<const DOut> d_out,
                                     std::span<DRows> d_rows,
                                     index_t columns,
                                     cudaStream_t stream) {
  detail::gather_rows_adjoint("cuda::gather_rows_backward_accumulate",
                              detail::gradient_write::accumulate, layout, d_out, d_rows, columns,
                              stream);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

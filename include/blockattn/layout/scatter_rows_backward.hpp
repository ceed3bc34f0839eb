// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/layout/scatter_rows.hpp>

/// \file
/// The adjoints of scatter_rows and gather_rows, for the gradients of embeddings and sink
/// embeddings. Spans hold any storage scalars, each its own; arithmetic is in their accumulator,
/// with one rounding to the storage of a result. Sums run in axis order, so equal input gives equal
/// bits. Gradients are written; the functions whose names end in _accumulate add to what is there.

namespace blockattn::inline BLOCKATTN_ABI {

/// Writable rows of gradients.
template <class Rows>
concept gradient_rows = writable_rows<Rows> && storage_scalar<std::ranges::range_value_t<Rows>>;

/// Rows of gradients, read.
template <class Rows>
concept gradient_source = std::ranges::contiguous_range<Rows> && std::ranges::sized_range<Rows> &&
    storage_scalar<std::remove_cv_t<std::ranges::range_value_t<Rows>>>;

namespace detail {

template <class Rows>
using element_of = std::remove_cv_t<std::ranges::range_value_t<Rows>>;

template <class T, class Rows>
std::span<T> as_span(Rows& rows) noexcept {
  return {std::ranges::data(rows), std::ranges::size(rows)};
}

struct assign_element {
  template <class T, class C>
  void operator()(T& stored, C value) const noexcept {
    store_scalar(stored, value);
  }
};

struct accumulate_element {
  template <class T, class C>
  void operator()(T& stored, C value) const noexcept {
    store_scalar(stored, static_cast<C>(load_scalar(stored)) + value);
  }
};

/// Rows [to_row, to_row + rows) of `to` become, or have added, those of `from`.
template <class C, class Put, class In, class Out>
void put_rows(const Put& put,
              const In* from,
              index_t from_row,
              Out* to,
              index_t to_row,
              index_t rows,
              index_t columns) noexcept {
  for (index_t i = 0; i < rows * columns; ++i) {
    put(to[to_row * columns + i], static_cast<C>(load_scalar(from[from_row * columns + i])));
  }
}

/// d_sinks[row] = the sum of that row's gradients over all sets, in axis order.
template <class C, class Put, class In, class Out>
void put_summed_sinks(
    const Put& put, const block_layout& layout, const In* d_out, Out* d_sinks, index_t columns) {
  constexpr index_t chunk = 16;
  for (index_t row = 0; row < layout.sink_options().tokens_per_block; ++row) {
    for (index_t begin = 0; begin < columns; begin += chunk) {
      const index_t count = std::min(chunk, columns - begin);
      C sums[chunk] = {};
      for (index_t b = 0; b < layout.blocks(); ++b) {
        const index_range sinks = layout.sink_tokens(b);
        if (sinks.empty()) continue;
        const In* const values = d_out + (sinks.begin + row) * columns + begin;
        for (index_t i = 0; i < count; ++i) sums[i] += static_cast<C>(load_scalar(values[i]));
      }
      for (index_t i = 0; i < count; ++i) put(d_sinks[row * columns + begin + i], sums[i]);
    }
  }
}

/// The spans of a scatter_rows_backward call; Layout as in check_scatter_rows.
template <class Layout, class DOut, class DSource, class DSinks>
void check_scatter_rows_backward(const char* function,
                                 const Layout& layout,
                                 std::span<const DOut> d_out,
                                 std::span<DSource> d_source_rows,
                                 std::span<DSinks> d_sink_rows,
                                 index_t columns) {
  const index_t per_set = layout.sink_options().tokens_per_block;
  const index_t all_sinks = layout.tokens() - layout.source_tokens();
  require(columns >= 1, function, ": columns is ", columns, ", must be positive");
  require_rows(function, "d_out", d_out.size(), layout.tokens(), columns);
  if (!d_source_rows.empty()) {
    require_rows(function, "d_source_rows", d_source_rows.size(), layout.source_tokens(), columns);
  }
  const std::size_t sinks = d_sink_rows.size();
  require(
      sinks == 0 || holds_rows(sinks, per_set, columns) || holds_rows(sinks, all_sinks, columns),
      function, ": d_sink_rows holds ", sinks, " elements, must hold ", per_set,
      " rows (one set) or ", all_sinks, " rows (all sinks) x ", columns, " columns, or nothing");
  check_apart(
      function,
      {{"d_source_rows", footprint_of(d_source_rows)}, {"d_sink_rows", footprint_of(d_sink_rows)}},
      {{"d_out", footprint_of(d_out)}});
}

/// The same of gather_rows_backward.
template <class Layout, class DOut, class DRows>
void check_gather_rows_backward(const char* function,
                                const Layout& layout,
                                std::span<const DOut> d_out,
                                std::span<DRows> d_rows,
                                index_t columns) {
  require(columns >= 1, function, ": columns is ", columns, ", must be positive");
  require_rows(function, "d_out", d_out.size(), layout.source_tokens(), columns);
  require_rows(function, "d_rows", d_rows.size(), layout.tokens(), columns);
  check_apart(function, {{"d_rows", footprint_of(d_rows)}}, {{"d_out", footprint_of(d_out)}});
}

template <class Put, class DOut, class DSource, class DSinks>
void scatter_rows_adjoint(const char* function,
                          const Put& put,
                          const block_layout& layout,
                          const DOut& d_out,
                          DSource& d_source_rows,
                          DSinks& d_sink_rows,
                          index_t columns) {
  using C = accumulator_t<std::remove_cv_t<std::ranges::range_value_t<DOut>>,
                          std::ranges::range_value_t<DSource>, std::ranges::range_value_t<DSinks>>;
  const std::size_t sources = std::ranges::size(d_source_rows);
  const std::size_t sink_values = std::ranges::size(d_sink_rows);
  check_scatter_rows_backward(function, layout, as_span<const element_of<DOut>>(d_out),
                              as_span<element_of<DSource>>(d_source_rows),
                              as_span<element_of<DSinks>>(d_sink_rows), columns);
  const bool one_set = holds_rows(sink_values, layout.sink_options().tokens_per_block, columns);

  const auto* const from = std::ranges::data(d_out);
  index_t sink_row = 0;
  for (index_t b = 0; b < layout.blocks(); ++b) {
    const index_range source = layout.source_range(b);
    const index_range sinks = layout.sink_tokens(b);
    if (sources != 0) {
      put_rows<C>(put, from, layout.content_tokens(b).begin, std::ranges::data(d_source_rows),
                  source.begin, source.size(), columns);
    }
    if (sink_values != 0 && !one_set) {
      put_rows<C>(put, from, sinks.begin, std::ranges::data(d_sink_rows), sink_row, sinks.size(),
                  columns);
    }
    sink_row += sinks.size();
  }
  if (sink_values != 0 && one_set) {
    put_summed_sinks<C>(put, layout, from, std::ranges::data(d_sink_rows), columns);
  }
}

template <class Put, class DOut, class DRows>
void gather_rows_adjoint(const char* function,
                         const Put& put,
                         const block_layout& layout,
                         const DOut& d_out,
                         DRows& d_rows,
                         index_t columns) {
  using C = accumulator_t<std::remove_cv_t<std::ranges::range_value_t<DOut>>,
                          std::ranges::range_value_t<DRows>>;
  check_gather_rows_backward(function, layout, as_span<const element_of<DOut>>(d_out),
                             as_span<element_of<DRows>>(d_rows), columns);
  auto* const to = std::ranges::data(d_rows);
  for (index_t b = 0; b < layout.blocks(); ++b) {
    const index_range source = layout.source_range(b);
    const index_range sinks = layout.sink_tokens(b);
    put_rows<C>(put, std::ranges::data(d_out), source.begin, to, layout.content_tokens(b).begin,
                source.size(), columns);
    for (index_t i = 0; i < sinks.size() * columns; ++i) put(to[sinks.begin * columns + i], C{0});
  }
}

}  // namespace detail

/// The adjoint of scatter_rows: from the gradient of its output,
///
///     d_source_rows[j] = d_out[token_of(j)]
///     d_sink_rows[r]   = sum over all sets of d_out[sink r of the set]   (one set), or
///     d_sink_rows[s]   = d_out[sink s]                                   (all sinks)
///
/// \param d_out (tokens, columns)
/// \param d_source_rows (source_tokens, columns), written; empty: not wanted
/// \param d_sink_rows (tokens_per_block, columns), for the same set everywhere, or (all sinks,
///   columns) in axis order, written; empty: not wanted
///
/// Spans do not overlap. O(tokens * columns), no allocation. Errors: a span of another size;
/// overlap; columns < 1.
template <gradient_source DOut, gradient_rows DSource, gradient_rows DSinks>
void scatter_rows_backward(const block_layout& layout,
                           const DOut& d_out,
                           DSource&& d_source_rows,
                           DSinks&& d_sink_rows,
                           index_t columns = 1) {
  detail::scatter_rows_adjoint("scatter_rows_backward", detail::assign_element{}, layout, d_out,
                               d_source_rows, d_sink_rows, columns);
}

/// scatter_rows_backward, adding to d_source_rows and d_sink_rows.
template <gradient_source DOut, gradient_rows DSource, gradient_rows DSinks>
void scatter_rows_backward_accumulate(const block_layout& layout,
                                      const DOut& d_out,
                                      DSource&& d_source_rows,
                                      DSinks&& d_sink_rows,
                                      index_t columns = 1) {
  detail::scatter_rows_adjoint("scatter_rows_backward_accumulate", detail::accumulate_element{},
                               layout, d_out, d_source_rows, d_sink_rows, columns);
}

/// The adjoint of gather_rows: d_rows[token_of(j)] = d_out[j]; rows of sinks, which gather_rows
/// leaves out, get 0.
///
/// \param d_out (source_tokens, columns)
/// \param d_rows (tokens, columns), written
///
/// Spans do not overlap. O(tokens * columns), no allocation. Errors: a span of another size;
/// overlap; columns < 1.
template <gradient_source DOut, gradient_rows DRows>
void gather_rows_backward(const block_layout& layout,
                          const DOut& d_out,
                          DRows&& d_rows,
                          index_t columns = 1) {
  detail::gather_rows_adjoint("gather_rows_backward", detail::assign_element{}, layout, d_out,
                              d_rows, columns);
}

/// gather_rows_backward, adding to d_rows.
template <gradient_source DOut, gradient_rows DRows>
void gather_rows_backward_accumulate(const block_layout& layout,
                                     const DOut& d_out,
                                     DRows&& d_rows,
                                     index_t columns = 1) {
  detail::gather_rows_adjoint("gather_rows_backward_accumulate", detail::accumulate_element{},
                              layout, d_out, d_rows, columns);
}

}  // namespace blockattn::inline BLOCKATTN_ABI

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/overlap_checks.hpp>
#include <blockattn/layout/block_layout.hpp>
#include <ranges>
#include <span>
#include <string_view>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI {

/// Contiguous storage that rows can be written to: vector, array, span.
template <class Rows>
concept writable_rows = std::ranges::contiguous_range<Rows> && std::ranges::sized_range<Rows> &&
    std::is_trivially_copyable_v<std::ranges::range_value_t<Rows>> &&
    !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<Rows>>>;

namespace detail {

/// size == rows * columns, by division: the product may overflow for a hostile column count.
inline bool holds_rows(std::size_t size, index_t rows, index_t columns) noexcept {
  const auto count = static_cast<index_t>(size);
  return rows == 0 ? count == 0 : count % rows == 0 && count / rows == columns;
}

inline void require_rows(std::string_view function,
                         std::string_view argument,
                         std::size_t size,
                         index_t rows,
                         index_t columns) {
  require(holds_rows(size, rows, columns), function, ": ", argument, " holds ", size,
          " elements, must hold ", rows, " rows x ", columns, " columns");
}

/// The spans of a scatter_rows call; Layout is a block_layout or has its tokens(), source_tokens()
/// and sink_options().
template <class Layout, class T>
void check_scatter_rows(const char* function,
                        const Layout& layout,
                        std::span<const T> source_rows,
                        std::span<const T> sink_rows,
                        std::span<T> out,
                        index_t columns) {
  const index_t per_set = layout.sink_options().tokens_per_block;
  const index_t all_sinks = layout.tokens() - layout.source_tokens();
  require(columns >= 1, function, ": columns is ", columns, ", must be positive");
  require_rows(function, "source_rows", source_rows.size(), layout.source_tokens(), columns);
  require_rows(function, "out", out.size(), layout.tokens(), columns);
  const std::size_t sinks = sink_rows.size();
  require(holds_rows(sinks, per_set, columns) || holds_rows(sinks, all_sinks, columns), function,
          ": sink_rows holds ", sinks, " elements, must hold ", per_set, " rows (one set) or ",
          all_sinks, " rows (all sinks) x ", columns, " columns");
  check_apart(function, {{"out", footprint_of(out)}},
              {{"source_rows", footprint_of(source_rows)}, {"sink_rows", footprint_of(sink_rows)}});
}

/// The same of gather_rows.
template <class Layout, class T>
void check_gather_rows(const char* function,
                       const Layout& layout,
                       std::span<const T> rows,
                       std::span<T> out,
                       index_t columns) {
  require(columns >= 1, function, ": columns is ", columns, ", must be positive");
  require_rows(function, "rows", rows.size(), layout.tokens(), columns);
  require_rows(function, "out", out.size(), layout.source_tokens(), columns);
  check_apart(function, {{"out", footprint_of(out)}}, {{"rows", footprint_of(rows)}});
}

template <class T>
void copy_rows(std::span<const T> from,
               index_t from_row,
               std::span<T> to,
               index_t to_row,
               index_t rows,
               index_t columns) {
  std::copy_n(from.data() + from_row * columns, rows * columns, to.data() + to_row * columns);
}

}  // namespace detail

/// Writes rows of the source axis and sink rows to their places on the axis of the layout:
/// out[token_of(j)] = source_rows[j]; out[sink] = its sink row. Rows are token ids (columns = 1),
/// embeddings or anything trivially copyable, row-major. `=`, every row of `out` is written.
///
/// \param source_rows (source_tokens, columns)
/// \param sink_rows (tokens_per_block, columns): the same set everywhere; or (all sinks, columns),
///   in axis order: a set of its own for each block. Empty for a layout without sinks.
/// \param out (tokens, columns), must not overlap the inputs
///
/// O(tokens * columns). Errors: a span of another size; overlap; columns < 1.
template <writable_rows Out>
void scatter_rows(const block_layout& layout,
                  std::span<const std::ranges::range_value_t<Out>> source_rows,
                  std::span<const std::ranges::range_value_t<Out>> sink_rows,
                  Out&& out,
                  index_t columns = 1) {
  using T = std::ranges::range_value_t<Out>;
  const std::span<T> rows(std::ranges::data(out), std::ranges::size(out));
  detail::check_scatter_rows("scatter_rows", layout, source_rows, sink_rows, rows, columns);
  const bool one_set =
      detail::holds_rows(sink_rows.size(), layout.sink_options().tokens_per_block, columns);
  index_t sink_row = 0;
  for (index_t b = 0; b < layout.blocks(); ++b) {
    const index_range source = layout.source_range(b);
    const index_range sinks = layout.sink_tokens(b);
    detail::copy_rows<T>(source_rows, source.begin, rows, layout.content_tokens(b).begin,
                         source.size(), columns);
    detail::copy_rows<T>(sink_rows, one_set ? 0 : sink_row, rows, sinks.begin, sinks.size(),
                         columns);
    sink_row += sinks.size();
  }
}

/// Reads the rows of the source axis back: out[j] = rows[token_of(j)]; sink rows are left out.
/// `=`, every row of `out` is written.
///
/// \param rows (tokens, columns)
/// \param out (source_tokens, columns), must not overlap `rows`
///
/// O(tokens * columns). Errors: a span of another size; overlap; columns < 1.
template <writable_rows Out>
void gather_rows(const block_layout& layout,
                 std::span<const std::ranges::range_value_t<Out>> rows,
                 Out&& out,
                 index_t columns = 1) {
  using T = std::ranges::range_value_t<Out>;
  const std::span<T> source_rows(std::ranges::data(out), std::ranges::size(out));
  detail::check_gather_rows("gather_rows", layout, rows, source_rows, columns);
  for (index_t b = 0; b < layout.blocks(); ++b) {
    const index_range source = layout.source_range(b);
    detail::copy_rows<T>(rows, layout.content_tokens(b).begin, source_rows, source.begin,
                         source.size(), columns);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI

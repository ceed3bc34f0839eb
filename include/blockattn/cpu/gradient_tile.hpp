// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/workspace.hpp>
#include <blockattn/cpu/pack.hpp>
#include <blockattn/cpu/tile_gradient.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// Sizes of a worker's gradient tile; the same numbers lay out its memory and index it.
struct gradient_tile_sizes {
  index_t rows = 0;       ///< most query rows
  index_t columns = 0;    ///< most key columns
  index_t head_dim = 0;   ///< of q and k
  index_t value_dim = 0;  ///< of v and o
};

/// One key tile on its way over query tiles (arXiv 2205.14135, algorithm 4; 2307.08691, algorithm
/// 2): keys and values stay packed, d_k and d_v are the running sums, unscaled. A query tile is
/// taken in three passes:
///   scores:    S = q . k^T,  dP = d_o . v^T     (range of columns per group of rows)
///   gradients: S -> P,  dP -> dS                (the caller's rows and runs)
///   products:  d_v += P^T . d_o,  d_k += dS^T . q,  d_q += dS . k
/// P and dS live in one tile of rows x columns each; nothing is as large as the mask. Columns are
/// counted from the key tile's first key. All memory comes from the caller's workspace.
template <class C, class Arch>
class gradient_tile {
 public:
  static constexpr index_t group_rows = register_tile<Arch>::rows;
  static constexpr index_t width = panel_width<C, Arch>;

  static index_t bytes(const gradient_tile_sizes& sizes) noexcept {
    workspace_layout layout;
    gradient_tile(sizes).lay_out(layout);
    return layout.size();
  }

  gradient_tile(const gradient_tile_sizes& sizes, std::span<std::byte> memory) noexcept
      : gradient_tile(sizes) {
    workspace_layout layout;
    const offsets at = lay_out(layout);
    key_columns_ = piece<C>(memory, at.key_columns);
    value_columns_ = piece<C>(memory, at.value_columns);
    key_rows_ = piece<C>(memory, at.key_rows);
    d_k_ = piece<C>(memory, at.d_k);
    d_v_ = piece<C>(memory, at.d_v);
    q_ = piece<C>(memory, at.q);
    d_o_ = piece<C>(memory, at.d_o);
    scores_ = piece<C>(memory, at.scores);
    d_scores_ = piece<C>(memory, at.d_scores);
    ranges_ = piece<index_range>(memory, at.ranges);
    runs_ = piece<index_range>(memory, at.runs);
    // Columns of q and d_o from their dim on are multiplied too: they must be finite.
    std::fill_n(q_, sizes.rows * q_stride_, C(0));
    std::fill_n(d_o_, sizes.rows * d_o_stride_, C(0));
  }

  /// Starts a key tile of `columns` keys with empty sums. The caller packs the operands.
  void begin_keys(index_t columns) noexcept {
    columns_ = columns;
    std::fill_n(d_k_, columns * d_k_stride_, C(0));
    std::fill_n(d_v_, columns * d_v_stride_, C(0));
  }
  /// Starts a query tile. The caller writes its rows of q and d_o.
  void begin_queries(index_t rows) noexcept { rows_ = rows; }

  C* key_columns() const noexcept { return key_columns_; }  ///< panels, as pack_key_panel writes
  C* value_columns() const noexcept { return value_columns_; }  ///< panels of v^T, alike
  C* key_rows() const noexcept { return key_rows_; }            ///< panels, as pack_values writes
  C* q_row(index_t row) const noexcept { return q_ + row * q_stride_; }
  C* d_o_row(index_t row) const noexcept { return d_o_ + row * d_o_stride_; }
  C* score_row(index_t row) const noexcept { return scores_ + row * score_stride_; }
  C* d_score_row(index_t row) const noexcept { return d_scores_ + row * score_stride_; }
  const C* d_k_row(index_t column) const noexcept { return d_k_ + column * d_k_stride_; }
  const C* d_v_row(index_t column) const noexcept { return d_v_ + column * d_v_stride_; }

  index_t groups() const noexcept { return ceil_divide(rows_, group_rows); }
  index_range group(index_t g) const noexcept {
    return {g * group_rows, std::min(rows_, (g + 1) * group_rows)};
  }
  index_range& columns_of_group(index_t g) const noexcept { return ranges_[g]; }
  index_range* runs() const noexcept { return runs_; }

  /// S and dP of the columns that each group reaches. A panel (16 KiB at dim 128) stays in L1 for
  /// all groups.
  void score() const noexcept {
    multiply_columns(q_, q_stride_, key_columns_, sizes_.head_dim, scores_);
    multiply_columns(d_o_, d_o_stride_, value_columns_, sizes_.value_dim, d_scores_);
  }

  /// Every row of a full tile.
  template <class GradientOf>
  void gradients_of_full(const score_transform<C>& transform,
                         const GradientOf& gradient_of) const noexcept {
    for (index_t row = 0; row < rows_; ++row) {
      gradient_of_row<Arch>(score_row(row), d_score_row(row),
                            {0, round_up(columns_, lanes<C, Arch>)}, transform, gradient_of(row));
    }
  }

  /// Every row of a partial tile. `runs_of(row, runs)` writes the sorted runs of columns that a row
  /// sees and returns their number.
  template <class GradientOf, class RunsOf>
  void gradients_of_partial(const score_transform<C>& transform,
                            const GradientOf& gradient_of,
                            const RunsOf& runs_of) const noexcept {
    constexpr index_t step = lanes<C, Arch>;
    for (index_t g = 0; g < groups(); ++g) {
      const index_range range{ranges_[g].begin / step * step, round_up(ranges_[g].end, step)};
      for (index_t row = group(g).begin; row < group(g).end; ++row) {
        const index_t count = ranges_[g].empty() ? 0 : runs_of(row, runs_);
        if (count > 0) {
          gradient_of_row<Arch>(score_row(row), d_score_row(row), range, transform,
                                gradient_of(row));
        } else {  // may hold anything, and would meet weights of 0
          std::fill_n(q_row(row), sizes_.head_dim, C(0));
          std::fill_n(d_o_row(row), sizes_.value_dim, C(0));
        }
        // Groups of keys reach over rows that see none of them.
        clear_columns(score_row(row), d_score_row(row), {0, columns_},
                      {runs_, static_cast<std::size_t>(count)});
      }
    }
  }

  /// d_v += P^T . d_o and d_k += dS^T . q: the left operands are read by columns.
  void add_to_keys() const noexcept {
    for (index_t first = 0; first < columns_; first += group_rows) {
      const index_range keys{first, std::min(columns_, first + group_rows)};
      runs_[first / group_rows] = rows_reaching(keys);
    }
    add_transposed(scores_, d_o_, d_o_stride_, d_v_, d_v_stride_);
    add_transposed(d_scores_, q_, q_stride_, d_k_, d_k_stride_);
  }

  /// d_q += dS . k; d_q is (rows, stride) with stride a multiple of the panel.
  void add_to_queries(C* d_q, index_t stride) const noexcept {
    for (index_t p = 0; p * width < sizes_.head_dim; ++p) {
      const C* const panel = key_rows_ + p * sizes_.columns * width;
      for (index_t g = 0; g < groups(); ++g) {
        if (ranges_[g].empty()) continue;
        multiply_panel<Arch>(group(g).size(), d_score_row(g * group_rows) + ranges_[g].begin,
                             score_stride_, panel + ranges_[g].begin * width, width,
                             ranges_[g].size(), d_q + g * group_rows * stride + p * width, stride,
                             accumulate_mode::add);
      }
    }
  }

 private:
  /// One more cache line than a power of two, so that rows do not share their L1 sets.
  static constexpr index_t skew = 64 / static_cast<index_t>(sizeof(C));

  explicit gradient_tile(const gradient_tile_sizes& sizes) noexcept
      : sizes_(sizes),
        q_stride_(round_up(sizes.head_dim, width) + skew),
        d_o_stride_(round_up(sizes.value_dim, width) + skew),
        score_stride_(round_up(sizes.columns, width) + skew),
        d_k_stride_(round_up(sizes.head_dim, width)),
        d_v_stride_(round_up(sizes.value_dim, width)) {}

  struct offsets {
    index_t key_columns, value_columns, key_rows, d_k, d_v, q, d_o, scores, d_scores, ranges, runs;
  };
  offsets lay_out(workspace_layout& layout) const noexcept {
    const index_t padded = round_up(sizes_.columns, width);
    offsets at{};
    at.key_columns = layout.take<C>(padded * sizes_.head_dim);
    at.value_columns = layout.take<C>(padded * sizes_.value_dim);
    at.key_rows = layout.take<C>(sizes_.columns * round_up(sizes_.head_dim, width));
    at.d_k = layout.take<C>(sizes_.columns * d_k_stride_);
    at.d_v = layout.take<C>(sizes_.columns * d_v_stride_);
    at.q = layout.take<C>(sizes_.rows * q_stride_);
    at.d_o = layout.take<C>(sizes_.rows * d_o_stride_);
    at.scores = layout.take<C>(sizes_.rows * score_stride_);
    at.d_scores = layout.take<C>(sizes_.rows * score_stride_);
    at.ranges = layout.take<index_range>(ceil_divide(sizes_.rows, group_rows));
    at.runs = layout.take<index_range>(sizes_.columns);
    return at;
  }

  void multiply_columns(
      const C* left, index_t stride, const C* panels, index_t dim, C* out) const noexcept {
    for (index_t column = 0; column < columns_; column += width) {
      for (index_t g = 0; g < groups(); ++g) {
        if (intersect(ranges_[g], index_range{column, column + width}).empty()) continue;
        multiply_panel<Arch>(group(g).size(), left + g * group_rows * stride, stride,
                             panels + column * dim, width, dim,
                             out + g * group_rows * score_stride_ + column, score_stride_,
                             accumulate_mode::assign);
      }
    }
  }

  /// The rows from the first to the last group that reaches one of the keys.
  index_range rows_reaching(const index_range& keys) const noexcept {
    index_range rows{rows_, 0};
    for (index_t g = 0; g < groups(); ++g) {
      if (intersect(ranges_[g], keys).empty()) continue;
      rows = {std::min(rows.begin, group(g).begin), group(g).end};
    }
    return rows;
  }

  void add_transposed(const C* left,
                      const C* right,
                      index_t right_stride,
                      C* out,
                      index_t out_stride) const noexcept {
    for (index_t column = 0; column < out_stride; column += width) {
      for (index_t first = 0; first < columns_; first += group_rows) {
        const index_range rows = runs_[first / group_rows];
        if (rows.empty()) continue;
        multiply_panel<Arch, left_order::columns>(
            std::min(group_rows, columns_ - first), left + rows.begin * score_stride_ + first,
            score_stride_, right + rows.begin * right_stride + column, right_stride, rows.size(),
            out + first * out_stride + column, out_stride, accumulate_mode::add);
      }
    }
  }

  gradient_tile_sizes sizes_;
  index_t q_stride_;
  index_t d_o_stride_;
  index_t score_stride_;
  index_t d_k_stride_;
  index_t d_v_stride_;
  index_t columns_ = 0;
  index_t rows_ = 0;
  C* key_columns_ = nullptr;
  C* value_columns_ = nullptr;
  C* key_rows_ = nullptr;
  C* d_k_ = nullptr;
  C* d_v_ = nullptr;
  C* q_ = nullptr;
  C* d_o_ = nullptr;
  C* scores_ = nullptr;
  C* d_scores_ = nullptr;
  index_range* ranges_ = nullptr;  ///< (groups) columns that a group of rows reaches
  index_range* runs_ = nullptr;    ///< scratch: runs of a row, then rows that reach a group of keys
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

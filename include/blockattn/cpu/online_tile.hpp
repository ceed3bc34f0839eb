// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/workspace.hpp>
#include <blockattn/cpu/pack.hpp>
#include <blockattn/cpu/tile_softmax.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// Sizes of a worker's query tile; the same numbers lay out its memory and index it.
struct online_tile_sizes {
  index_t rows = 0;       ///< most query rows
  index_t columns = 0;    ///< most key columns, a multiple of panel_width
  index_t head_dim = 0;   ///< of q and k
  index_t value_dim = 0;  ///< of v and o
};

/// One query tile on its way over key tiles (arXiv 2205.14135, algorithm 1; 2307.08691): rows of q
/// stay packed, and (o, row_max, row_sum) is the running softmax state, unnormalised. A key tile is
/// taken in three passes:
///   scores:  S = q . k^T          (the caller's choice of kernel; range per group of rows)
///   softmax: S -> weights exp(score - max), row_max and row_sum updated, o rescaled where the
///            maximum grew
///   values:  o += weights . v
/// Columns are counted from the tile's own origin. All memory comes from the caller's workspace.
template <class Panel, class Arch>
class online_tile {
 public:
  using C = typename operand<Panel, Arch>::accumulator;
  static constexpr index_t group_rows = register_tile<Arch>::rows;
  static constexpr index_t width = panel_width<C, Arch>;

  static index_t bytes(const online_tile_sizes& sizes) noexcept {
    workspace_layout layout;
    online_tile(sizes).lay_out(layout);
    return layout.size();
  }

  online_tile(const online_tile_sizes& sizes, std::span<std::byte> memory) noexcept
      : online_tile(sizes) {
    workspace_layout layout;
    const offsets at = lay_out(layout);
    q_ = piece<Panel>(memory, at.q);
    scores_ = piece<C>(memory, at.scores);
    weights_ = piece<Panel>(memory, at.weights);
    o_ = piece<C>(memory, at.o);
    row_max_ = piece<C>(memory, at.row_max);
    row_sum_ = piece<C>(memory, at.row_sum);
    ranges_ = piece<index_range>(memory, at.ranges);
    runs_ = piece<index_range>(memory, at.runs);
  }

  /// Starts a tile of `rows` empty rows.
  void begin(index_t rows, const score_transform<C>& transform) noexcept {
    rows_ = rows;
    transform_ = transform;
    std::fill_n(o_, rows * o_stride_, C(0));
    std::fill_n(row_max_, rows, -std::numeric_limits<C>::infinity());
    std::fill_n(row_sum_, rows, C(0));
  }

  /// For the key tiles to come.
  void set_transform(const score_transform<C>& transform) noexcept { transform_ = transform; }

  index_t rows() const noexcept { return rows_; }
  index_t groups() const noexcept { return ceil_divide(rows_, group_rows); }
  index_range group(index_t g) const noexcept {
    return {g * group_rows, std::min(rows_, (g + 1) * group_rows)};
  }

  Panel* q_row(index_t row) const noexcept { return q_ + row * q_stride_; }
  C* score_row(index_t row) const noexcept { return scores_ + row * score_stride_; }
  index_t q_stride() const noexcept { return q_stride_; }
  index_t score_stride() const noexcept { return score_stride_; }
  index_range& columns_of_group(index_t g) const noexcept { return ranges_[g]; }
  index_range* runs() const noexcept { return runs_; }

  /// Every group takes part with the same columns.
  void set_columns(const index_range& columns) noexcept { std::fill_n(ranges_, groups(), columns); }

  /// S of `columns` (a multiple of panel_width at its begin) for packed keys; `panels` starts at
  /// columns.begin. Only panels that a group reaches are computed. The panel loop is outside: a
  /// panel (16 KiB at head_dim 128) stays in L1 for all groups.
  void score_packed(const Panel* panels, const index_range& columns) noexcept {
    const index_t steps = steps_for<Panel, Arch>(sizes_.head_dim);
    for (index_t column = columns.begin; column < columns.end; column += width) {
      const Panel* const panel = panels + (column - columns.begin) * steps;
      for (index_t g = 0; g < groups(); ++g) {
        if (intersect(ranges_[g], index_range{column, column + width}).empty()) continue;
        multiply_panel<Arch>(group(g).size(), q_row(g * group_rows), q_stride_, panel, width, steps,
                             score_row(g * group_rows) + column, score_stride_,
                             accumulate_mode::assign);
      }
    }
  }

  /// Turns S into weights. `runs_of(row, runs)` writes the sorted runs of columns that a row sees
  /// and returns their number.
  template <class RunsOf>
  void softmax(const RunsOf& runs_of) noexcept {
    constexpr index_t step = lanes<C, Arch>;
    for (index_t g = 0; g < groups(); ++g) {
      if (ranges_[g].empty()) continue;
      const index_range range{ranges_[g].begin / step * step, round_up(ranges_[g].end, step)};
      for (index_t row = group(g).begin; row < group(g).end; ++row) {
        C* s = score_row(row);
        const index_t count = runs_of(row, runs_);
        if (count == 0) {
          clear_weights<Panel, Arch, C>(range, weight_row(row));
          continue;
        }
        if (transform_.cap != 0) cap_scores<C, Arch>(s, range, transform_);
        hide_columns(s, range, {runs_, static_cast<std::size_t>(count)});
        const row_update<C> update =
            softmax_row<Panel, Arch>(s, range, transform_, row_max_[row], weight_row(row));
        row_sum_[row] = row_sum_[row] * update.rescale + update.sum;
        row_max_[row] = update.row_max;
        if (update.rescale != C(1))
          scale_row<C, Arch>(o_ + row * o_stride_, o_stride_, update.rescale);
      }
    }
  }

  /// o += weights . v over `columns` (a multiple of a step at its begin), where panel p of v starts
  /// at `values + p * panel_stride` and step t of it (Panel elements) at t * step_stride; step 0
  /// belongs to columns.begin. Every column in a group's range must hold finite values.
  void add_values(const Panel* values,
                  index_t panel_stride,
                  index_t step_stride,
                  const index_range& columns) noexcept {
    constexpr index_t per_step = operand<Panel, Arch>::values_per_step;
    const index_t origin = columns.begin / per_step;
    for (index_t p = 0; p * width < sizes_.value_dim; ++p) {
      for (index_t g = 0; g < groups(); ++g) {
        const index_range reached = intersect(ranges_[g], columns);
        if (reached.empty()) continue;
        const index_t first = reached.begin / per_step;
        const index_t steps = ceil_divide(reached.end, per_step) - first;
        multiply_panel<Arch>(group(g).size(), weight_row(g * group_rows) + first, weight_stride(),
                             values + p * panel_stride + (first - origin) * step_stride,
                             step_stride, steps, o_ + g * group_rows * o_stride_ + p * width,
                             o_stride_, accumulate_mode::add);
      }
    }
  }

  /// A row after its last tile: o * factor is the softmax average, lse its natural logarithm;
  /// (0, -inf) when empty.
  struct finished_row {
    const C* o;
    C factor;
    C lse;
  };
  finished_row finish(index_t row) const noexcept {
    const C sum = row_sum_[row];
    const bool empty = sum == 0;  // the largest weight of a row is 1; NaN is not empty
    return {o_ + row * o_stride_, empty ? C(0) : 1 / sum,
            empty ? -std::numeric_limits<C>::infinity() : row_max_[row] + std::log(sum)};
  }

 private:
  static constexpr bool weights_apart = !std::is_same_v<Panel, C>;

  explicit online_tile(const online_tile_sizes& sizes) noexcept
      : sizes_(sizes),
        q_stride_(steps_for<Panel, Arch>(sizes.head_dim)),
        // One more cache line than a power of two, so that rows do not share their L1 sets.
        score_stride_(sizes.columns + 64 / static_cast<index_t>(sizeof(C))),
        o_stride_(round_up(sizes.value_dim, width)) {}

  struct offsets {
    index_t q, scores, weights, o, row_max, row_sum, ranges, runs;
  };
  offsets lay_out(workspace_layout& layout) const noexcept {
    offsets at{};
    at.q = layout.take<Panel>(sizes_.rows * q_stride_);
    at.scores = layout.take<C>(sizes_.rows * score_stride_);
    at.weights = layout.take<Panel>(weights_apart ? sizes_.rows * weight_stride() : 0);
    at.o = layout.take<C>(sizes_.rows * o_stride_);
    at.row_max = layout.take<C>(sizes_.rows);
    at.row_sum = layout.take<C>(sizes_.rows);
    at.ranges = layout.take<index_range>(ceil_divide(sizes_.rows, group_rows));
    at.runs = layout.take<index_range>(sizes_.columns);
    return at;
  }

  index_t weight_stride() const noexcept {
    return score_stride_ / operand<Panel, Arch>::values_per_step;
  }
  Panel* weight_row(index_t row) const noexcept {
    if constexpr (weights_apart)
      return weights_ + row * weight_stride();
    else
      return score_row(row);
  }

  online_tile_sizes sizes_;
  index_t q_stride_;
  index_t score_stride_;
  index_t o_stride_;
  index_t rows_ = 0;
  score_transform<C> transform_;
  Panel* q_ = nullptr;
  C* scores_ = nullptr;
  Panel* weights_ = nullptr;
  C* o_ = nullptr;
  C* row_max_ = nullptr;
  C* row_sum_ = nullptr;
  index_range* ranges_ = nullptr;
  index_range* runs_ = nullptr;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Joins the visible runs of consecutive query rows into slices, greedily: a run continues the one
/// above it when both ends can be ends of one slice. On the way down the left end of a slice stays
/// and then moves right by one key per row, the right end moves and then stays.
class row_run_merger {
 public:
  /// The visible keys of the next row: sorted runs with a gap between any two. Rows are passed in
  /// increasing order; a skipped row sees nothing. O(runs of this row and of the one before).
  void add_row(index_t query, std::span<const index_range> runs) {
    // Runs are separated by gaps, so at most one run above begins at run.begin - 1 or run.begin.
    auto above = growing_.begin();
    for (const index_range& run : runs) {
      while (above != growing_.end() && above->last.begin < run.begin - 1) finish(*above++);
      if (above != growing_.end() && above->last.begin <= run.begin &&
          try_extend(*above, query, run)) {
        grown_.push_back(*above++);
      } else {
        grown_.push_back({{{query, query + 1}, run}, run});
      }
    }
    while (above != growing_.end()) finish(*above++);
    growing_.swap(grown_);
    grown_.clear();
  }

  /// The slices of all rows.
  std::vector<slice> take() {
    for (const growing_slice& g : growing_) finish(g);
    growing_.clear();
    return std::move(finished_);
  }

 private:
  struct growing_slice {
    slice shape;
    index_range last;  ///< its keys in its last row
  };

  void finish(const growing_slice& g) { finished_.push_back(g.shape); }

  static bool try_extend(growing_slice& g, index_t query, const index_range& run) noexcept {
    slice& shape = g.shape;
    const bool left_may_stay = shape.lower == no_lower_diagonal;
    const bool right_may_move =
        shape.queries.size() == 1 || shape.upper == g.last.end - shape.queries.end;
    const index_t left_step = run.begin - g.last.begin;
    const index_t right_step = run.end - g.last.end;
    const bool fits = shape.queries.end == query &&
                      (left_step == 1 || (left_step == 0 && left_may_stay)) &&
                      (right_step == 0 || (right_step == 1 && right_may_move));
    if (!fits) return false;
    if (left_step == 1) shape.lower = run.begin - query;
    if (right_step == 1) shape.upper = run.end - 1 - query;
    shape.keys.end = run.end;
    shape.queries.end = query + 1;
    g.last = run;
    return true;
  }

  std::vector<growing_slice> growing_;  // reach the last row, sorted by last.begin
  std::vector<growing_slice> grown_;
  std::vector<slice> finished_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Collects the slices of one query block after another, each block's from left to right, and joins
/// neighbours that form one slice. The part of a causal slice right of its last query is empty, so
/// its key range may be extended there: causal blocks below one another become one band.
class block_slice_merger {
 public:
  /// Begins the row of a later block. It is not empty, and follows the one before unless it sees
  /// none of the same keys.
  void begin_row(const index_range& queries) {
    queries_ = queries;
    row_.clear();
  }

  /// The row sees these keys, right of those that it has: every pair, or those with key <= query.
  void add(const index_range& keys, bool causal) {
    if (keys.empty()) return;
    if (!row_.empty() && row_.back().keys.end == keys.begin && row_.back().upper != 0) {
      row_.back().keys.end = keys.end;
      row_.back().upper = causal ? 0 : no_upper_diagonal;
    } else {
      row_.push_back({queries_, keys, no_lower_diagonal, causal ? 0 : no_upper_diagonal});
    }
  }

  /// Joins the row with the one above it.
  void end_row() {
    numbers_.clear();
    auto above = above_.begin();
    for (const slice& s : row_) {
      while (above != above_.end() && slices_[*above].keys.begin < s.keys.begin) ++above;
      const bool joins = above != above_.end() && joins_below(slices_[*above], s);
      numbers_.push_back(joins ? *above : slices_.size());
      if (joins) {
        slices_[*above].queries.end = s.queries.end;
        slices_[*above++].keys.end = s.keys.end;
      } else {
        slices_.push_back(s);
      }
    }
    above_.swap(numbers_);
  }

  /// The slices of all rows, by (queries.begin, keys.begin).
  std::vector<slice> take() { return std::move(slices_); }

 private:
  static bool joins_below(const slice& above, const slice& s) noexcept {
    return above.keys.begin == s.keys.begin && above.upper == s.upper &&
           (s.upper == 0 || above.keys.end == s.keys.end);
  }

  index_range queries_;
  std::vector<slice> row_;
  std::vector<slice> slices_;
  std::vector<std::size_t> above_;    ///< numbers in slices_ of those that the row above ends with
  std::vector<std::size_t> numbers_;  ///< the same of the row that ends
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

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
    above_.swap(row_);
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
    auto upper_row = above_.begin();
    for (slice& s : row_) {
      while (upper_row != above_.end() && upper_row->keys.begin < s.keys.begin) {
        finished_.push_back(*upper_row++);
      }
      const bool joins = upper_row != above_.end() && upper_row->keys.begin == s.keys.begin &&
                         upper_row->upper == s.upper &&
                         (s.upper == 0 || upper_row->keys.end == s.keys.end);
      if (joins) s.queries.begin = (upper_row++)->queries.begin;
    }
    finished_.insert(finished_.end(), upper_row, above_.end());
  }

  std::vector<slice> take() {
    finished_.insert(finished_.end(), row_.begin(), row_.end());
    row_.clear();
    return std::move(finished_);
  }

 private:
  index_range queries_;
  std::vector<slice> above_;
  std::vector<slice> row_;
  std::vector<slice> finished_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

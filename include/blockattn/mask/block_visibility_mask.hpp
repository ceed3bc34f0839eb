// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <cstdint>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// How the tokens of one block see those of another: not at all, every pair, or key <= query by
/// token index.
enum class block_visibility : std::uint8_t { hidden, full, causal };

namespace detail {

/// Collects the slices of one query block after another, each block's from left to right, and joins
/// neighbours that form one slice. The part of a causal slice right of its last query is empty, so
/// its key range may be extended there: causal blocks below one another become one band.
class block_slice_merger {
 public:
  explicit block_slice_merger(const block_layout& layout) : layout_(&layout) {}

  void begin_row(index_t query_block) {
    queries_ = layout_->block(query_block);
    above_.swap(row_);
    row_.clear();
  }

  /// Query block sees key block; both are non-empty and not `hidden`.
  void add(index_t key_block, bool causal) {
    const index_range keys = layout_->block(key_block);
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
  const block_layout* layout_;
  index_range queries_;
  std::vector<slice> above_;
  std::vector<slice> row_;
  std::vector<slice> finished_;
};

}  // namespace detail

/// An arbitrary relation between blocks: with A = visibility[b(i) * blocks + b(j)],
///
///     visible(i, j) = A is full, or A is causal and j <= i
///
/// over the whole axis: blocks of different sequences see each other only if the matrix says so.
/// Sink tokens are ordinary tokens of their block; a shared sink set is a block of its own.
///
/// \param visibility (blocks, blocks), row-major, query block first
///
/// Neighbouring blocks are merged where they form one rectangle or band; at worst O(blocks^2)
/// slices. O(blocks^2 + slices log slices). Errors: a matrix of another size; a value that is no
/// block_visibility.
inline attention_mask block_visibility_mask(const block_layout& layout,
                                            std::span<const block_visibility> visibility) {
  const index_t blocks = layout.blocks();
  const auto entries = static_cast<index_t>(visibility.size());
  detail::require(blocks == 0 ? entries == 0 : entries % blocks == 0 && entries / blocks == blocks,
                  "block_visibility_mask: visibility holds ", entries, " entries, must hold ",
                  blocks, " x ", blocks);
  detail::block_slice_merger merger(layout);
  for (index_t b = 0; b < blocks; ++b) {
    if (!layout.block(b).empty()) merger.begin_row(b);
    for (index_t c = 0; c < blocks; ++c) {
      const block_visibility entry = visibility[static_cast<std::size_t>(b * blocks + c)];
      detail::require(entry <= block_visibility::causal, "block_visibility_mask: visibility[", b,
                      "][", c, "] is ", static_cast<int>(entry), ", no block_visibility");
      if (entry == block_visibility::hidden || layout.block(b).empty() || layout.block(c).empty()) {
        continue;
      }
      // Off the diagonal causal is all or nothing.
      if (entry == block_visibility::full || c < b) merger.add(c, false);
      if (entry == block_visibility::causal && c == b) merger.add(c, true);
    }
    if (!layout.block(b).empty()) merger.end_row();
  }
  return attention_mask::from_disjoint_slices(layout.tokens(), layout.tokens(), merger.take());
}

}  // namespace blockattn::inline BLOCKATTN_ABI

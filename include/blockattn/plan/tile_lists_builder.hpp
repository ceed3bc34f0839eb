// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/plan/tile_lists.hpp>
#include <blockattn/plan/tiled_axis.hpp>
#include <numeric>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Writes tile lists outer tile by outer tile, told only what changes from one to the next:
/// `open(region)`, the region's runs of tiles by `add_run`, `close()`; regions from left to right;
/// after the last region of an outer tile `end_outer()`.
///
/// The chain of the current outer tile is cut at the place of the last change into two stacks, so
/// that changes side by side cost nothing but themselves.
class tile_lists_builder {
 public:
  /// Sums over the inner tiles of the current outer tile.
  struct totals {
    index_t full_tiles = 0;
    index_t partial_tiles = 0;
    index_t inner_tokens = 0;  ///< of both
  };

  tile_lists_builder(const tiled_axis& inner, index_t outer_tiles) : inner_(inner) {
    lists_.outer_tiles = outer_tiles;
    lists_.first_span.reserve(static_cast<std::size_t>(outer_tiles));
    lists_.tile_count.reserve(static_cast<std::size_t>(outer_tiles));
  }

  /// Begins to replace what the chain holds of the inner tiles of `region`.
  void open(const index_range& region) {
    region_end_ = region.end;
    removed_.clear();
    runs_.clear();
    old_ = 0;
    while (!left_.empty() && span(left_.back()).inner_end > region.begin) move_to(right_, left_);
    while (!right_.empty() && span(right_.back()).inner_end < region.begin) move_to(left_, right_);
    // Neighbours that touch the region may grow into it.
    if (!left_.empty() && span(left_.back()).inner_end == region.begin) move_to(right_, left_);
    while (!right_.empty() && span(right_.back()).inner_begin <= region.end) {
      move_to(removed_, right_);
    }
    for (const std::int32_t number : removed_) {
      tile_span before = span(number);
      if (before.inner_begin >= region.begin) break;
      before.inner_end = std::min(before.inner_end, static_cast<std::int32_t>(region.begin));
      runs_.push_back(before);
    }
  }

  /// A run of tiles of the region, right of those before; full when no slices are given.
  void add_run(const index_range& run, std::span<const std::int32_t> slices) {
    tile_span added{static_cast<std::int32_t>(run.begin), static_cast<std::int32_t>(run.end)};
    if (!slices.empty()) find_or_write(slices, added);
    append(added);
  }

  void close() {
    for (const std::int32_t number : removed_) {
      tile_span behind = span(number);
      if (behind.inner_end <= region_end_) continue;
      behind.inner_begin = std::max(behind.inner_begin, static_cast<std::int32_t>(region_end_));
      append(behind);
    }
    // Spans that are as before keep their numbers.
    const std::size_t common = std::min(removed_.size(), runs_.size());
    std::size_t same_left = 0;
    while (same_left < common && span(removed_[same_left]) == runs_[same_left]) ++same_left;
    std::size_t same_right = 0;
    while (same_right < common - same_left && span(removed_[removed_.size() - 1 - same_right]) ==
                                                  runs_[runs_.size() - 1 - same_right]) {
      ++same_right;
    }
    for (std::size_t i = 0; i < same_left; ++i) left_.push_back(removed_[i]);
    for (std::size_t i = 0; i < same_right; ++i)
      right_.push_back(removed_[removed_.size() - 1 - i]);
    if (same_left + same_right == removed_.size() && removed_.size() == runs_.size()) return;

    for (std::size_t i = same_left; i < removed_.size() - same_right; ++i) {
      count(span(removed_[i]), -1);
    }
    const auto behind = [this] { return right_.empty() ? -1 : right_.back(); };
    const auto first = runs_.begin() + static_cast<std::ptrdiff_t>(same_left);
    const auto last = runs_.end() - static_cast<std::ptrdiff_t>(same_right);
    const index_t number = std::ssize(lists_.spans);
    require_32_bits(number + (last - first), "the number of spans");
    if (!left_.empty()) {
      link(left_.back(), first < last ? static_cast<std::int32_t>(number) : behind());
    }
    if (first == last) return;
    for (auto run = first; run < last; ++run) {
      count(*run, 1);
      left_.push_back(static_cast<std::int32_t>(number + (run - first)));
      lists_.spans.push_back(*run);
    }
    link(left_.back(), behind());
  }

  void end_outer() {
    lists_.first_span.push_back(!left_.empty()    ? left_.front()
                                : !right_.empty() ? right_.back()
                                                  : -1);
    lists_.tile_count.push_back(totals_.full_tiles + totals_.partial_tiles);
  }

  const totals& of_outer() const noexcept { return totals_; }

  /// Call once, after the last outer tile.
  tile_lists take() {
    sort_links();
    lists_.order.resize(lists_.tile_count.size());
    std::iota(lists_.order.begin(), lists_.order.end(), 0);
    std::stable_sort(lists_.order.begin(), lists_.order.end(), [this](auto a, auto b) {
      return lists_.tile_count[static_cast<std::size_t>(a)] >
             lists_.tile_count[static_cast<std::size_t>(b)];
    });
    return std::move(lists_);
  }

 private:
  struct link_note {
    std::int32_t span;
    span_link link;
  };

  const tile_span& span(std::int32_t number) const noexcept {
    return lists_.spans[static_cast<std::size_t>(number)];
  }

  static void move_to(std::vector<std::int32_t>& to, std::vector<std::int32_t>& from) {
    to.push_back(from.back());
    from.pop_back();
  }

  bool lists_slices(const tile_span& s, std::span<const std::int32_t> slices) const noexcept {
    const std::span<const std::int32_t> listed = lists_.slices_of(s);
    if (listed.size() != slices.size()) return false;
    // One or two numbers mostly: a call of memcmp, which std::equal is, costs more than they.
    for (std::size_t i = 0; i < slices.size(); ++i) {
      if (listed[i] != slices[i]) return false;
    }
    return true;
  }

  /// Slices are written once where the tiles to the left, those in the same place of the outer tile
  /// before or the last partial ones have the same.
  void find_or_write(std::span<const std::int32_t> slices, tile_span& added) {
    const auto reuse = [&](const tile_span& other) {
      if (other.is_full() || !lists_slices(other, slices)) return false;
      added.slices_begin = other.slices_begin;
      added.slices_end = other.slices_end;
      return true;
    };
    while (old_ < removed_.size() && span(removed_[old_]).inner_end <= added.inner_begin) ++old_;
    const bool found = (!runs_.empty() && reuse(runs_.back())) ||
                       (old_ < removed_.size() && reuse(span(removed_[old_]))) ||
                       reuse(last_partial_);
    if (!found) {
      const auto ids = static_cast<index_t>(lists_.slice_ids.size());
      const auto end = ids + static_cast<index_t>(slices.size());
      require_32_bits(end, "the number of slice ids of the partial tiles");
      added.slices_begin = static_cast<std::int32_t>(ids);
      added.slices_end = static_cast<std::int32_t>(end);
      for (const std::int32_t id : slices) lists_.slice_ids.push_back(id);
    }
    last_partial_ = added;
  }

  void append(const tile_span& added) {
    if (!runs_.empty()) {
      tile_span& last = runs_.back();
      const bool alike =
          last.is_full() ? added.is_full() : lists_slices(last, lists_.slices_of(added));
      if (last.inner_end == added.inner_begin && alike) {
        last.inner_end = added.inner_end;
        return;
      }
    }
    runs_.push_back(added);
  }

  void count(const tile_span& s, index_t sign) noexcept {
    (s.is_full() ? totals_.full_tiles : totals_.partial_tiles) += sign * s.tiles();
    totals_.inner_tokens += sign * inner_.tokens_in({s.inner_begin, s.inner_end});
  }

  void link(std::int32_t from, std::int32_t next) {
    const auto outer = static_cast<std::int32_t>(lists_.first_span.size());
    if (!notes_.empty() && notes_.back().span == from && notes_.back().link.outer == outer) {
      notes_.back().link.next = next;
    } else {
      notes_.push_back({from, {outer, next}});
    }
  }

  /// By span, each span's in the order of time: of two for the same outer tile the later one
  /// counts.
  void sort_links() {
    require_32_bits(static_cast<index_t>(notes_.size()), "the number of links between spans");
    lists_.first_link.assign(lists_.spans.size() + 1, 0);
    for (const link_note& note : notes_) ++lists_.first_link[static_cast<std::size_t>(note.span)];
    std::exclusive_scan(lists_.first_link.begin(), lists_.first_link.end(),
                        lists_.first_link.begin(), 0);
    lists_.links.resize(notes_.size());
    for (const link_note& note : notes_) {
      lists_.links[static_cast<std::size_t>(
          lists_.first_link[static_cast<std::size_t>(note.span)]++)] = note.link;
    }
    // Each offset has moved to the next span's.
    std::move_backward(lists_.first_link.begin(), lists_.first_link.end() - 1,
                       lists_.first_link.end());
    lists_.first_link.front() = 0;
  }

  tiled_axis inner_;
  tile_lists lists_;
  totals totals_;
  std::vector<link_note> notes_;
  std::vector<std::int32_t> left_;   ///< the chain left of the last change, from left to right
  std::vector<std::int32_t> right_;  ///< what follows, from right to left
  index_t region_end_ = 0;
  std::vector<std::int32_t> removed_;  ///< the region's spans of the outer tile before
  std::size_t old_ = 0;                ///< of removed_
  std::vector<tile_span> runs_;        ///< the region's new ones
  tile_span last_partial_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/slice.hpp>
#include <blockattn/plan/slice_visits.hpp>
#include <blockattn/plan/tile_lists_builder.hpp>
#include <blockattn/plan/tile_plan.hpp>
#include <functional>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Lists the tiles of one direction, from one outer tile to the next: only those parts of the inner
/// axis are looked at where a slice begins or ends, or a band's edge moves. Within a part it walks
/// over the slices that meet it, from one change to the next: a run of tiles that every slice there
/// fills or leaves alike is one step however long it is. Only tiles that a slice's edge crosses are
/// counted pair by formula, one by one.
///
/// O(outer tiles + n) for n slices, plus for each part O(a log a) for the a slices that meet it,
/// plus the size of the lists. A slice makes a part of its own in at most four outer tiles, and in
/// each where a diagonal cuts it.
class tile_sweep {
 public:
  /// `slices` are disjoint, trimmed and inside the axes, with the outer axis as their queries;
  /// their places in the list are the ids. They must outlive the sweep.
  tile_sweep(const std::vector<slice>& slices, const tiled_axis& outer, const tiled_axis& inner)
      : slices_(slices),
        outer_(outer),
        inner_(inner),
        visits_(slices, outer, inner),
        builder_(inner, outer.tiles()) {}

  /// Call once. Adds the tiles to `statistics` (full, partial, area).
  tile_lists run(tile_statistics& statistics) {
    const index_t outer_tiles = outer_.tiles();
    for (index_t tile = 0; tile < outer_tiles; ++tile) {
      outer_range_ = outer_.tokens_of(tile);
      const std::span<const visit_change> changes = visits_.advance(tile);
      for (next_change_ = changes.begin(); next_change_ != changes.end();) {
        collect_region(changes.end());
        walk();
      }
      builder_.end_outer();
      const tile_lists_builder::totals& sums = builder_.of_outer();
      statistics.full_tiles += sums.full_tiles;
      statistics.partial_tiles += sums.partial_tiles;
      statistics.tile_area += outer_range_.size() * sums.inner_tokens;
    }
    return builder_.take();
  }

 private:
  /// A run of inner tiles that the same slices meet, each filling all of them as far as its rows go
  /// or all of them partly.
  struct cell {
    std::int32_t begin;
    std::int32_t end;
    std::int64_t ids_begin;  ///< into cell_ids_
    std::int32_t ids;
  };

  using changes_iterator = std::span<const visit_change>::iterator;

  /// Takes the next changes that touch one another, and the cells in their place, out of the lists:
  /// `region_` and `candidates_`, the slices that may meet it.
  void collect_region(changes_iterator end) {
    region_ = {next_change_->begin, next_change_->end};
    candidates_.clear();
    while (!left_.empty() && left_.back().end > region_.begin) move_to(right_, left_);
    while (!right_.empty() && right_.back().end <= region_.begin) move_to(left_, right_);
    for (bool grows = true; grows;) {
      grows = false;
      for (; next_change_ != end && next_change_->begin <= region_.end; ++next_change_) {
        region_.end = std::max<index_t>(region_.end, next_change_->end);
        add_candidate(next_change_->id);
      }
      while (!right_.empty() && right_.back().begin < region_.end) {
        const cell& c = right_.back();
        region_.begin = std::min<index_t>(region_.begin, c.begin);
        grows = grows || c.end > region_.end;
        region_.end = std::max<index_t>(region_.end, c.end);
        for (std::int32_t i = 0; i < c.ids; ++i) {
          add_candidate(cell_ids_[static_cast<std::size_t>(c.ids_begin + i)]);
        }
        live_ids_ -= c.ids;
        right_.pop_back();
      }
    }
    std::erase_if(candidates_, [this](const candidate& c) {
      slice_visit& v = visits_.of(c.id);
      v.is_listed = false;
      return v.met_end <= region_.begin || region_.end <= v.met_begin;
    });
    sort_by_runs(candidates_, std::less<>());
  }

  void add_candidate(std::int32_t id) {
    slice_visit& v = visits_.of(id);
    if (v.is_listed) return;
    v.is_listed = true;
    candidates_.push_back({v.met_begin, id});
  }

  static void move_to(std::vector<cell>& to, std::vector<cell>& from) {
    to.push_back(from.back());
    from.pop_back();
  }

  /// Lists the tiles of the region anew.
  void walk() {
    builder_.open(region_);
    present_.clear();
    auto next = candidates_.cbegin();
    index_t tile = region_.begin;
    while (tile < region_.end && (next != candidates_.cend() || !present_.empty())) {
      if (present_.empty()) tile = std::max<index_t>(tile, next->met_begin);
      for (; next != candidates_.cend() && next->met_begin <= tile; ++next) enter(next->id);

      index_t end = next != candidates_.cend() ? next->met_begin : region_.end;
      end = std::min(end, region_.end);
      index_t first_leaves = region_.end;  // of the present ones, here
      index_t rows = 0;
      bool all_solid = true;
      for (const std::int32_t id : present_) {
        const slice_visit& v = visits_.of(id);
        const bool solid = v.solid_begin <= tile && tile < v.solid_end;
        all_solid = all_solid && solid;
        rows += v.rows;
        end = std::min<index_t>(end, solid ? v.solid_end : tile + 1);
        first_leaves = std::min<index_t>(first_leaves, v.met_end);
      }
      // A slice that is not solid leaves a part of its rows to others.
      const bool full = all_solid ? rows == outer_range_.size()
                                  : rows > outer_range_.size() && together_fill(tile);
      builder_.add_run({tile, end}, full ? std::span<const std::int32_t>{} : present_);
      keep_cell({tile, end});
      tile = end;
      if (first_leaves > tile) continue;
      std::erase_if(present_, [&](std::int32_t id) { return visits_.of(id).met_end <= tile; });
    }
    builder_.close();
  }

  /// Keeps `present_` in the order of ids, so that equal masks give equal plans.
  void enter(std::int32_t id) {
    const auto place = std::find_if(present_.rbegin(), present_.rend(),
                                    [id](std::int32_t other) { return other < id; });
    present_.insert(place.base(), id);
  }

  /// True when the visible pairs of the present slices add up to the area of an inner tile.
  bool together_fill(index_t tile) const noexcept {
    const index_range keys = inner_.tokens_of(tile);
    index_t pairs = 0;
    for (const std::int32_t id : present_) {
      const slice& s = slices_[static_cast<std::size_t>(id)];
      const slice_visit& v = visits_.of(id);
      pairs += v.is_rectangle ? v.rows * intersect(s.keys, keys).size()
                              : visible_pairs(cut(s, outer_range_, keys));
    }
    return pairs == outer_range_.size() * keys.size();
  }

  void keep_cell(const index_range& run) {
    const auto ids = static_cast<std::int32_t>(present_.size());
    left_.push_back({static_cast<std::int32_t>(run.begin), static_cast<std::int32_t>(run.end),
                     static_cast<std::int64_t>(cell_ids_.size()), ids});
    for (const std::int32_t id : present_) cell_ids_.push_back(id);
    live_ids_ += ids;
    if (static_cast<index_t>(cell_ids_.size()) > 4 * live_ids_ + 4096) drop_dead_ids();
  }

  /// Rewrites `cell_ids_` without those of cells that are gone.
  void drop_dead_ids() {
    kept_ids_.clear();
    kept_ids_.reserve(static_cast<std::size_t>(live_ids_));
    for (std::vector<cell>* cells : {&left_, &right_}) {
      for (cell& c : *cells) {
        const auto begin = cell_ids_.begin() + c.ids_begin;
        c.ids_begin = static_cast<std::int64_t>(kept_ids_.size());
        kept_ids_.insert(kept_ids_.end(), begin, begin + c.ids);
      }
    }
    cell_ids_.swap(kept_ids_);
  }

  /// A slice that meets the region, by the first inner tile that it meets.
  struct candidate {
    std::int32_t met_begin;
    std::int32_t id;
    friend constexpr auto operator<=>(const candidate&, const candidate&) = default;
  };

  const std::vector<slice>& slices_;
  tiled_axis outer_;
  tiled_axis inner_;
  slice_visits visits_;
  tile_lists_builder builder_;
  index_range outer_range_;
  changes_iterator next_change_;
  index_range region_;
  std::vector<candidate> candidates_;
  std::vector<std::int32_t> present_;  ///< slices that meet the current inner tile, by id
  std::vector<cell> left_;             ///< cells left of the region, from left to right
  std::vector<cell> right_;            ///< cells right of it, from right to left
  std::vector<std::int32_t> cell_ids_;
  std::vector<std::int32_t> kept_ids_;
  index_t live_ids_ = 0;  ///< of cell_ids_
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/error.hpp>
#include <blockattn/plan/tile_plan.hpp>
#include <cstdint>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// A token axis cut into tiles; the last tile may be shorter.
struct tiled_axis {
  index_t tokens = 0;
  index_t tile_tokens = 1;

  constexpr index_t tiles() const noexcept { return ceil_divide(tokens, tile_tokens); }
  constexpr index_range tokens_of(index_t tile) const noexcept {
    return {tile * tile_tokens, std::min(tokens, (tile + 1) * tile_tokens)};
  }
  /// The tiles that meet a non-empty range.
  constexpr index_range tiles_meeting(const index_range& range) const noexcept {
    return {range.begin / tile_tokens, ceil_divide(range.end, tile_tokens)};
  }
  /// The tiles that lie inside a range (possibly none: empty).
  constexpr index_range tiles_inside(const index_range& range) const noexcept {
    return {ceil_divide(range.begin, tile_tokens),
            range.end == tokens ? tiles() : range.end / tile_tokens};
  }
};

/// A slice without the rows and columns that see nothing: every row and every column of the result
/// has a visible pair. Precondition: visible_pairs(s) > 0.
constexpr slice tightened(const slice& s) noexcept {
  const index_range queries = intersect(s.queries, {s.keys.begin - s.upper, s.keys.end - s.lower});
  const index_range keys = intersect(s.keys, {queries.begin + s.lower, queries.end + s.upper});
  return {queries, keys, s.lower, s.upper};
}

/// Plans store 32-bit numbers. Throws `error` when a count does not fit.
inline void require_32_bits(index_t count, const char* what) {
  require(count <= std::numeric_limits<std::int32_t>::max(), "make_tile_plan: ", what, " is ",
          count, ", a plan holds at most 2147483647; use larger tiles or split the mask");
}

/// Lists the tiles of one direction. For each outer tile it walks along the inner axis over the
/// slices that meet it, from one change to the next: a run of tiles that every slice there fills or
/// leaves alike is one step however long it is. Only tiles that a band's edge crosses are counted
/// pair by formula, one by one.
///
/// O(n log n) for n slices, plus for each outer tile O(a log a) for the a slices that meet it (O(a)
/// while their order along the inner axis lasts), plus the size of the lists.
class tile_sweep {
 public:
  /// `slices` are disjoint, inside the axes and not empty, with the outer axis as their queries;
  /// their places in the list become the ids.
  tile_sweep(const std::vector<slice>& slices, const tiled_axis& outer, const tiled_axis& inner)
      : outer_(outer), inner_(inner) {
    arrivals_.reserve(slices.size());
    for (const slice& s : slices) {
      arrivals_.push_back({tightened(s), static_cast<std::int32_t>(arrivals_.size())});
    }
    std::stable_sort(arrivals_.begin(), arrivals_.end(), [](const arrival& a, const arrival& b) {
      return a.extent.queries.begin < b.extent.queries.begin;
    });
  }

  /// Call once. Adds the tiles to `statistics` (full, partial, area).
  tile_lists run(tile_statistics& statistics) {
    const index_t outer_tiles = outer_.tiles();
    lists_.outer_tiles = outer_tiles;
    lists_.span_begin.reserve(static_cast<std::size_t>(outer_tiles) + 1);
    lists_.tile_count.reserve(static_cast<std::size_t>(outer_tiles));
    lists_.span_begin.push_back(0);
    for (index_t tile = 0; tile < outer_tiles; ++tile) {
      const tile_statistics before = statistics;
      outer_range_ = outer_.tokens_of(tile);
      collect_visitors();
      walk(statistics);
      lists_.span_begin.push_back(static_cast<std::int64_t>(lists_.spans.size()));
      lists_.tile_count.push_back(statistics.full_tiles - before.full_tiles +
                                  statistics.partial_tiles - before.partial_tiles);
    }
    lists_.order.resize(static_cast<std::size_t>(outer_tiles));
    std::iota(lists_.order.begin(), lists_.order.end(), 0);
    std::stable_sort(lists_.order.begin(), lists_.order.end(), [this](auto a, auto b) {
      return lists_.tile_count[static_cast<std::size_t>(a)] >
             lists_.tile_count[static_cast<std::size_t>(b)];
    });
    return std::move(lists_);
  }

 private:
  struct arrival {
    slice extent;  ///< tightened
    std::int32_t id;
  };

  /// A slice within the current outer tile. It meets the inner tiles `met`; in the tiles `solid`, a
  /// part of `met`, each of its `rows` outer tokens sees every inner token.
  struct visitor {
    const arrival* source;
    index_t rows;
    index_range met;
    index_range solid;
  };

  visitor visit(const arrival& a) const noexcept {
    const slice& s = a.extent;
    const index_range rows = intersect(s.queries, outer_range_);
    const index_range some_row_sees = {std::max(s.keys.begin, rows.begin + s.lower),
                                       std::min(s.keys.end, rows.end + s.upper)};
    const index_range every_row_sees = {std::max(s.keys.begin, rows.end - 1 + s.lower),
                                        std::min(s.keys.end, rows.begin + s.upper + 1)};
    return {&a, rows.size(), inner_.tiles_meeting(some_row_sees),
            inner_.tiles_inside(every_row_sees)};
  }

  /// The slices that meet the current outer tile, ordered by the first inner tile that they meet.
  void collect_visitors() {
    std::erase_if(visitors_, [this](const visitor& v) {
      return v.source->extent.queries.end <= outer_range_.begin;
    });
    for (visitor& v : visitors_) v = visit(*v.source);
    for (; next_arrival_ < arrivals_.size() &&
           arrivals_[next_arrival_].extent.queries.begin < outer_range_.end;
         ++next_arrival_) {
      visitors_.push_back(visit(arrivals_[next_arrival_]));
    }
    // The order of the previous outer tile mostly lasts: sort only what follows its first break.
    const auto by_first_tile = [](const visitor& a, const visitor& b) {
      return a.met.begin < b.met.begin;
    };
    const auto tail = std::is_sorted_until(visitors_.begin(), visitors_.end(), by_first_tile);
    if (tail == visitors_.end()) return;
    std::sort(tail, visitors_.end(), by_first_tile);
    std::inplace_merge(visitors_.begin(), tail, visitors_.end(), by_first_tile);
  }

  /// Writes the spans of the current outer tile.
  void walk(tile_statistics& statistics) {
    const std::size_t first_span = lists_.spans.size();
    auto next = visitors_.cbegin();
    index_t tile = 0;
    while (next != visitors_.cend() || !present_.empty()) {
      if (present_.empty()) tile = next->met.begin;
      for (; next != visitors_.cend() && next->met.begin <= tile; ++next) enter(*next);

      index_t end = next != visitors_.cend() ? next->met.begin : inner_.tiles();
      index_t solid_rows = 0;
      bool all_solid = true;
      for (const visitor* v : present_) {
        const bool solid = v->solid.contains(tile);
        all_solid = all_solid && solid;
        solid_rows += solid ? v->rows : 0;
        end = std::min(end, solid ? v->solid.end : tile + 1);
      }
      const index_range run = {tile, end};
      if (all_solid ? solid_rows == outer_range_.size() : together_fill(tile)) {
        add_full(run, first_span);
        statistics.full_tiles += run.size();
      } else {
        add_partial(run);
        statistics.partial_tiles += run.size();
      }
      statistics.tile_area +=
          outer_range_.size() * (inner_.tokens_of(end - 1).end - inner_.tokens_of(tile).begin);

      tile = end;
      std::erase_if(present_, [tile](const visitor* v) { return v->met.end <= tile; });
    }
  }

  /// Keeps `present_` in the order of ids, so that equal masks give equal plans.
  void enter(const visitor& v) {
    const auto place = std::find_if(present_.rbegin(), present_.rend(), [&v](const visitor* other) {
      return other->source->id < v.source->id;
    });
    present_.insert(place.base(), &v);
  }

  /// True when the visible pairs of the present slices add up to the area of an inner tile. One
  /// slice alone fills only the tiles in its solid run.
  bool together_fill(index_t tile) const noexcept {
    if (present_.size() < 2) return false;
    const index_range keys = inner_.tokens_of(tile);
    index_t pairs = 0;
    for (const visitor* v : present_) {
      pairs += visible_pairs(cut(v->source->extent, outer_range_, keys));
    }
    return pairs == outer_range_.size() * keys.size();
  }

  void add_full(const index_range& run, std::size_t first_span) {
    const auto end = static_cast<std::int32_t>(run.end);
    if (lists_.spans.size() > first_span) {
      tile_span& last = lists_.spans.back();
      if (last.is_full() && last.inner_end == run.begin) {
        last.inner_end = end;
        return;
      }
    }
    lists_.spans.push_back({static_cast<std::int32_t>(run.begin), end});
  }

  void add_partial(const index_range& run) {
    const auto present = static_cast<index_t>(present_.size());
    index_t ids = static_cast<index_t>(lists_.slice_ids.size());
    require_32_bits(ids + run.size() * present, "the number of slice ids of the partial tiles");
    for (index_t tile = run.begin; tile < run.end; ++tile, ids += present) {
      for (const visitor* v : present_) lists_.slice_ids.push_back(v->source->id);
      lists_.spans.push_back({static_cast<std::int32_t>(tile), static_cast<std::int32_t>(tile + 1),
                              static_cast<std::int32_t>(ids),
                              static_cast<std::int32_t>(ids + present)});
    }
  }

  tiled_axis outer_;
  tiled_axis inner_;
  std::vector<arrival> arrivals_;  ///< by first outer token
  std::size_t next_arrival_ = 0;
  index_range outer_range_;
  std::vector<visitor> visitors_;        ///< of the current outer tile, by first inner tile
  std::vector<const visitor*> present_;  ///< those that meet the current inner tile, by id
  tile_lists lists_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

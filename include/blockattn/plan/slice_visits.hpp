// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/slice.hpp>
#include <blockattn/plan/tiled_axis.hpp>
#include <numeric>
#include <span>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Sorts what mostly is a few sorted runs, one behind the other. O(size * log runs).
template <class T, class Less>
void sort_by_runs(std::vector<T>& values, const Less& less) {
  auto sorted_end = std::is_sorted_until(values.begin(), values.end(), less);
  if (sorted_end == values.end()) return;
  constexpr int most_runs = 8;
  for (int runs = 1; sorted_end != values.end(); ++runs) {
    auto run_end = std::is_sorted_until(sorted_end, values.end(), less);
    if (runs == most_runs) {
      std::sort(sorted_end, values.end(), less);
      run_end = values.end();
    }
    std::inplace_merge(values.begin(), sorted_end, run_end, less);
    sorted_end = run_end;
  }
}

/// A slice within the current outer tile. It meets the inner tiles `met`; in the tiles `solid`, a
/// part of `met`, each of its `rows` outer tokens sees every inner token.
struct slice_visit {
  std::int32_t rows = 0;
  std::int32_t met_begin = 0;
  std::int32_t met_end = 0;  ///< 0 when the slice does not meet the outer tile
  std::int32_t solid_begin = 0;
  std::int32_t solid_end = 0;
  std::int32_t plain_begin = 0;  ///< outer tiles in which the visit is the same: every row there
  std::int32_t plain_end = 0;    ///< sees all keys of the slice
  bool is_rectangle = false;     ///< no diagonal cuts the slice
  bool is_listed = false;        ///< for the use of the sweep

  bool meets() const noexcept { return met_begin < met_end; }
  bool has_plain() const noexcept { return plain_begin < plain_end; }
  bool is_plain(index_t tile) const noexcept { return plain_begin <= tile && tile < plain_end; }
  bool has_solid() const noexcept { return solid_begin < solid_end; }
};

/// Inner tiles in which a slice looks another way than in the outer tile before.
struct visit_change {
  std::int32_t begin;
  std::int32_t end;
  std::int32_t id;
};

/// Where the slices of a mask meet the current outer tile, and where that differs from the tile
/// before: everywhere but inside its plain tiles. A rectangle is plain but for its first and last
/// outer tile, a band where no diagonal cuts it.
class slice_visits {
 public:
  /// `slices` are trimmed, inside the axes, and outlive the visits; the outer axis is that of their
  /// queries.
  slice_visits(const std::vector<slice>& slices, const tiled_axis& outer, const tiled_axis& inner)
      : slices_(slices), outer_(outer), inner_(inner), visits_(slices.size()) {
    for (std::size_t id = 0; id < slices.size(); ++id) {
      const slice& s = slices[id];
      const index_range uncut = {s.keys.end - 1 - s.upper, s.keys.begin - s.lower + 1};
      const index_range plain = intersect(s.queries, uncut);
      visits_[id].is_rectangle = plain == s.queries;
      if (plain.empty()) continue;
      // A last tile that is shorter than the others has fewer rows: it is never plain.
      visits_[id].plain_begin = static_cast<std::int32_t>(outer.tile_from(plain.begin));
      visits_[id].plain_end = static_cast<std::int32_t>(outer.tile_of(plain.end));
    }
    starts_ = numbers_by_tile(
        [this](std::size_t id) { return outer_.tile_of(slices_[id].queries.begin); });
    wakes_ = numbers_by_tile([this](std::size_t id) {
      return visits_[id].has_plain() ? index_t{visits_[id].plain_end} : outer_.tiles();
    });
  }

  slice_visit& of(std::int32_t id) noexcept { return visits_[static_cast<std::size_t>(id)]; }
  const slice_visit& of(std::int32_t id) const noexcept {
    return visits_[static_cast<std::size_t>(id)];
  }

  /// Goes to outer tile `tile`, the one after the last. What has changed, by `begin`.
  std::span<const visit_change> advance(index_t tile) {
    before_ = range_;
    range_ = outer_.tokens_of(tile);
    changes_.clear();
    for (const std::int32_t id : moving_) update(id);
    std::erase_if(moving_,
                  [&](std::int32_t id) { return !of(id).meets() || of(id).is_plain(tile); });
    for (const tile_buckets* begun : {&starts_, &wakes_}) {
      for (const std::int32_t id : begun->in(tile)) {
        update(id);
        if (of(id).meets() && !of(id).is_plain(tile)) moving_.push_back(id);
      }
    }
    sort_by_runs(changes_,
                 [](const visit_change& a, const visit_change& b) { return a.begin < b.begin; });
    return changes_;
  }

 private:
  /// Slice numbers in the order of an outer tile.
  struct tile_buckets {
    std::vector<std::int32_t> begin;  ///< (tiles + 1) offsets into ids
    std::vector<std::int32_t> ids;

    std::span<const std::int32_t> in(index_t tile) const noexcept {
      const auto t = static_cast<std::size_t>(tile);
      return {ids.data() + begin[t], static_cast<std::size_t>(begin[t + 1] - begin[t])};
    }
  };

  /// Those that have no tile are given the one behind the last.
  template <class TileOf>
  tile_buckets numbers_by_tile(TileOf tile_of) const {
    tile_buckets buckets;
    buckets.begin.assign(static_cast<std::size_t>(outer_.tiles()) + 1, 0);
    buckets.ids.resize(slices_.size());
    for (std::size_t id = 0; id < slices_.size(); ++id) {
      ++buckets.begin[static_cast<std::size_t>(tile_of(id))];
    }
    // From the last number back, so that each offset ends as its tile's first.
    std::inclusive_scan(buckets.begin.begin(), buckets.begin.end(), buckets.begin.begin());
    for (std::size_t id = slices_.size(); id-- > 0;) {
      const auto place = --buckets.begin[static_cast<std::size_t>(tile_of(id))];
      buckets.ids[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(id);
    }
    return buckets;
  }

  const slice& slice_of(std::int32_t id) const noexcept {
    return slices_[static_cast<std::size_t>(id)];
  }

  void visit(const slice& s, slice_visit& v) const noexcept {
    const index_range rows = intersect(s.queries, range_);
    v.rows = static_cast<std::int32_t>(rows.size());
    if (rows.empty()) {
      v.met_begin = v.met_end = 0;
      return;
    }
    const index_range some_row_sees = {std::max(s.keys.begin, rows.begin + s.lower),
                                       std::min(s.keys.end, rows.end + s.upper)};
    const index_range every_row_sees = {std::max(s.keys.begin, rows.end - 1 + s.lower),
                                        std::min(s.keys.end, rows.begin + s.upper + 1)};
    const index_range met = inner_.tiles_meeting(some_row_sees);
    const index_range solid = every_row_sees.empty() ? index_range{met.end, met.end}
                                                     : inner_.tiles_inside(every_row_sees);
    v.met_begin = static_cast<std::int32_t>(met.begin);
    v.met_end = static_cast<std::int32_t>(met.end);
    v.solid_begin = static_cast<std::int32_t>(solid.begin);
    v.solid_end = static_cast<std::int32_t>(solid.end);
  }

  /// Visits a slice anew and notes where it looks another way.
  void update(std::int32_t id) {
    slice_visit& now = of(id);
    const slice_visit old = now;
    visit(slice_of(id), now);
    const auto note = [&](std::int32_t begin, std::int32_t end) {
      if (begin < end) changes_.push_back({begin, end, id});
    };
    if (!old.meets()) return note(now.met_begin, now.met_end);
    if (!now.meets()) return note(old.met_begin, old.met_end);
    const std::int32_t begin = std::min(old.met_begin, now.met_begin);
    const std::int32_t end = std::max(old.met_end, now.met_end);
    const bool all_rows = old.rows == before_.size() && now.rows == range_.size();
    if (!all_rows || !old.has_solid() || !now.has_solid()) return note(begin, end);
    const slice& s = slice_of(id);
    const bool left_stays = range_.end - 1 + s.lower <= s.keys.begin;
    const bool right_stays = s.keys.end <= before_.begin + s.upper + 1;
    if (!left_stays) note(begin, std::max(old.solid_begin, now.solid_begin));
    if (!right_stays) note(std::min(old.solid_end, now.solid_end), end);
  }

  const std::vector<slice>& slices_;
  tiled_axis outer_;
  tiled_axis inner_;
  tile_buckets starts_;
  tile_buckets wakes_;
  std::vector<slice_visit> visits_;
  std::vector<std::int32_t> moving_;  ///< those that meet the current outer tile and are not plain
  std::vector<visit_change> changes_;
  index_range before_;
  index_range range_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// Two slices of a list that share a pair, and one pair that they share.
struct slice_overlap {
  index_t first = 0;   ///< index of a slice
  index_t second = 0;  ///< index of another one, > first
  index_t query = 0;
  index_t key = 0;
};

namespace detail {

/// Sweeps a query row downwards over the slices that meet it, ordered by their first key on it.
/// Both ends of a slice's key interval stay or move right by one key per row, so slices that are
/// disjoint so far keep their order, and the first pair of slices to overlap are neighbours:
/// comparing neighbours when they become neighbours is enough (Shamos and Hoey's sweep).
class overlap_sweep {
 public:
  explicit overlap_sweep(std::span<const slice> slices) {
    trimmed_.reserve(slices.size());
    for (const slice& s : slices) trimmed_.push_back(trimmed(s));
    by_end_ = ids_by([](const slice& s) noexcept { return s.queries.end; });
    place_.resize(trimmed_.size());
  }
  overlap_sweep(const overlap_sweep&) = delete;  // active_ compares through `this`
  overlap_sweep& operator=(const overlap_sweep&) = delete;

  std::optional<slice_overlap> run() {
    for (const std::size_t id : ids_by([](const slice& s) noexcept { return s.queries.begin; })) {
      row_ = trimmed_[id].queries.begin;
      if (const auto found = remove_slices_above(row_)) return found;
      const auto next = active_.lower_bound(id);
      if (next != active_.end()) {
        if (const auto found = common(id, *next)) return found;
      }
      if (next != active_.begin()) {
        if (const auto found = common(id, *std::prev(next))) return found;
      }
      place_[id] = active_.insert(next, id);
    }
    return remove_slices_above(no_upper_diagonal);
  }

 private:
  struct by_first_key {
    const overlap_sweep* sweep;
    bool operator()(std::size_t a, std::size_t b) const noexcept {
      return sweep->first_key(a) < sweep->first_key(b);
    }
  };
  using row_order = std::set<std::size_t, by_first_key>;

  index_t first_key(std::size_t id) const noexcept { return trimmed_[id].keys_of(row_).begin; }

  /// Takes out the slices whose rows all lie above `row` and compares those that become neighbours.
  std::optional<slice_overlap> remove_slices_above(index_t row) {
    for (; ended_ < by_end_.size() && trimmed_[by_end_[ended_]].queries.end <= row; ++ended_) {
      const auto next = active_.erase(place_[by_end_[ended_]]);
      if (next == active_.begin() || next == active_.end()) continue;
      if (const auto found = common(*std::prev(next), *next)) return found;
    }
    return std::nullopt;
  }

  /// The non-empty slices in the order of a row number.
  template <class Row>
  std::vector<std::size_t> ids_by(Row row) const {
    std::vector<std::size_t> ids;
    for (std::size_t id = 0; id < trimmed_.size(); ++id) {
      if (!trimmed_[id].queries.empty()) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end(), [&](std::size_t a, std::size_t b) {
      return std::pair(row(trimmed_[a]), a) < std::pair(row(trimmed_[b]), b);
    });
    return ids;
  }

  std::optional<slice_overlap> common(std::size_t a, std::size_t b) const noexcept {
    const slice both = trimmed(intersect(trimmed_[a], trimmed_[b]));
    if (both.queries.empty()) return std::nullopt;
    return slice_overlap{static_cast<index_t>(std::min(a, b)), static_cast<index_t>(std::max(a, b)),
                         both.queries.begin, both.keys_of(both.queries.begin).begin};
  }

  std::vector<slice> trimmed_;
  std::vector<std::size_t> by_end_;
  std::size_t ended_ = 0;  // of by_end_
  index_t row_ = 0;
  row_order active_{by_first_key{this}};
  std::vector<row_order::iterator> place_;  // of each active slice
};

}  // namespace detail

/// Two slices that are not disjoint, if there are any. O(slices log slices).
inline std::optional<slice_overlap> first_overlap(std::span<const slice> slices) {
  return detail::overlap_sweep(slices).run();
}

}  // namespace blockattn::inline BLOCKATTN_ABI

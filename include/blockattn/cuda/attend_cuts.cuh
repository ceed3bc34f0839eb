// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <blockattn/attention/attend_arguments.hpp>
#include <blockattn/cuda/attend_tables.cuh>
#include <blockattn/cuda/attend_tuning.cuh>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What attend_blocks is cut by, beside its sequences.
struct attend_shape {
  index_t kv_heads;
  index_t group_heads;
  index_t columns;
  double scale;  ///< of scores, without a segment's own factor
  double softcap;
};

/// How a checked attend_blocks call is cut into items, by its shapes and its lists of segments
/// alone, so that results have the same bits on every device.
template <class K, class V>
class attend_cuts {
 public:
  using sequence = attend_sequence<K, V>;
  using segment = key_segment<K, V>;

  /// Segments [begin, end) of a sequence that form one key_group.
  struct group_range {
    index_t begin, end;
    index_t keys;
  };

  attend_cuts(std::span<const sequence> sequences, const attend_shape& shape)
      : sequences_(sequences), shape_(shape) {
    for (const sequence& s : sequences) {
      first_group_.push_back(std::ssize(groups_));
      for (index_t begin = 0; begin < segment_count(s);) {
        const group_range group = group_from(s, begin);
        if (group.keys > 0) groups_.push_back(group);
        begin = group.end;
      }
    }
    first_group_.push_back(std::ssize(groups_));
    for (int c = 0; c < attend_row_classes; ++c) longest_[at(c)] = longest_item(c);
  }

  std::span<const sequence> sequences() const noexcept { return sequences_; }
  const attend_shape& shape() const noexcept { return shape_; }
  index_t group_count() const noexcept { return std::ssize(groups_); }

  /// The segments of a sequence in order, the tail last.
  static index_t segment_count(const sequence& s) { return std::ssize(s.segments) + 1; }
  static const segment& segment_of(const sequence& s, index_t i) {
    return i + 1 == segment_count(s) ? s.tail : s.segments[static_cast<std::size_t>(i)];
  }

  std::span<const group_range> groups_of(index_t number) const {
    const index_t begin = first_group_[static_cast<std::size_t>(number)];
    const index_t end = first_group_[static_cast<std::size_t>(number) + 1];
    return std::span(groups_).subspan(static_cast<std::size_t>(begin),
                                      static_cast<std::size_t>(end - begin));
  }

  index_t rows_of(const sequence& s) const { return s.queries.size() * shape_.group_heads; }
  int class_of(const sequence& s) const { return attend_row_class(rows_of(s)); }
  index_t tile_rows(int row_class) const {
    return with_attend_tuning(shape_.columns, row_class,
                              [](auto tuning) -> index_t { return decltype(tuning)::rows; });
  }
  index_t tile_keys(int row_class) const {
    return with_attend_tuning(shape_.columns, row_class,
                              [](auto tuning) -> index_t { return decltype(tuning)::keys; });
  }

  static bool is_tail(const sequence& s, const group_range& g) {
    return g.begin == std::ssize(s.segments);
  }

  /// Tiles of a group that the queries up to `last_query` see.
  index_t tiles_of(const sequence& s,
                   const group_range& g,
                   int row_class,
                   index_t last_query) const {
    const index_t seen = is_tail(s, g) ? g.keys - s.queries.size() + last_query + 1 : g.keys;
    return ceil_divide(std::max<index_t>(0, seen), tile_keys(row_class));
  }

  /// Neighbouring groups that are weighted together.
  struct partition {
    std::span<const group_range> groups;
    index_t groups_before;    ///< in the sequence
    index_t segments_before;  ///< likewise
    index_t tiles;
    index_t parts;
    partition_weight weight;
  };

  /// Calls f(partition) for those of which the queries up to `last_query` see a key.
  template <class F>
  void for_each_partition(const sequence& s,
                          std::span<const group_range> groups,
                          int row_class,
                          index_t last_query,
                          const F& f) const {
    constexpr double log2_e = 1.4426950408889634;
    index_t segments = 0;
    for (std::size_t begin = 0; begin < groups.size();) {
      const segment& first = segment_of(s, groups[begin].begin);
      std::size_t end = begin;
      index_t tiles = 0;
      index_t size = 0;
      for (; end < groups.size(); ++end) {
        const group_range& group = groups[end];
        if (segment_of(s, group.begin).partition != first.partition) break;
        tiles += tiles_of(s, group, row_class, last_query);
        size += group.end - group.begin;
      }
      if (tiles > 0) {
        f(partition{groups.subspan(begin, end - begin),
                    static_cast<index_t>(begin),
                    segments,
                    tiles,
                    ceil_divide(tiles, std::max<index_t>(1, longest_[at(row_class)])),
                    {static_cast<float>(first.log_weight_scale),
                     static_cast<float>(first.log_weight * log2_e)}});
      }
      segments += size;
      begin = end;
    }
  }

  /// Calls f(item) for the parts of a partition. `item` says where the sequence's groups and
  /// segments begin.
  template <class F>
  void cut(const sequence& s,
           int row_class,
           index_t last_query,
           const partition& p,
           const attend_item& item,
           const F& f) const {
    const index_t keys = tile_keys(row_class);
    index_t part = 0;
    index_t before = 0;  // tiles of the partition before the group
    auto group = static_cast<std::int32_t>(item.group + p.groups_before);
    auto first_segment = static_cast<std::int32_t>(item.segment + p.segments_before);
    for (const group_range& g : p.groups) {
      const index_t tiles = tiles_of(s, g, row_class, last_query);
      index_t at = g.begin;  // where the part begins, and the keys before it
      index_t keys_before = 0;
      for (; part < p.parts && part * p.tiles / p.parts < before + tiles; ++part) {
        const index_t begin = part * p.tiles / p.parts;
        const index_t first_key = (begin - before) * keys;
        for (; first_key >= keys_before + segment_of(s, at).k.tokens; ++at) {
          keys_before += segment_of(s, at).k.tokens;
        }
        attend_item one = item;
        one.group = group;
        one.first_key = static_cast<std::int32_t>(first_key);
        one.tiles = static_cast<std::int32_t>((part + 1) * p.tiles / p.parts - begin);
        one.segment = static_cast<std::int32_t>(first_segment + at - g.begin);
        one.offset = static_cast<std::int32_t>(first_key - keys_before);
        f(one);
      }
      before += tiles;
      ++group;
      first_segment += static_cast<std::int32_t>(g.end - g.begin);
    }
  }

 private:
  /// The group that begins with segment `begin`. The tail stands alone: it is causal.
  static group_range group_from(const sequence& s, index_t begin) {
    const segment& first = segment_of(s, begin);
    group_range group{begin, begin + 1, first.k.tokens};
    while (group.end < std::ssize(s.segments)) {
      const segment& next = segment_of(s, group.end);
      const bool joins = next.partition == first.partition &&
                         next.query_shift == first.query_shift &&
                         next.score_scale == first.score_scale;
      if (!joins) break;
      group.keys += next.k.tokens;
      ++group.end;
    }
    return group;
  }

  /// Most tiles of one item of a class: for waves of as many items as run at a time, the length
  /// with which all are done first. An item costs about two tiles more than it has.
  index_t longest_item(int row_class) const {
    constexpr index_t overhead = 2;
    constexpr index_t shortest = 4;
    struct load {
      index_t copies;  ///< row tiles x kv heads
      index_t tiles;
    };
    std::vector<load> loads;
    index_t most = shortest;
    index_t number = 0;
    for (const sequence& s : sequences_) {
      const std::span<const group_range> groups = groups_of(number++);
      if (class_of(s) != row_class || s.queries.size() == 0) continue;
      const index_t rows_per_tile = tile_rows(row_class);
      const index_t copies = ceil_divide(rows_of(s), rows_per_tile) * shape_.kv_heads;
      for_each_partition(s, groups, row_class, s.queries.size() - 1, [&](const partition& p) {
        loads.push_back({copies, p.tiles});
        most = std::max(most, p.tiles);
      });
    }
    const auto items_of = [&loads](index_t longest) {
      index_t items = 0;
      for (const load& l : loads) items += l.copies * ceil_divide(l.tiles, longest);
      return items;
    };
    const index_t at_a_time = with_attend_tuning(
        shape_.columns, row_class, [](auto tuning) -> index_t { return decltype(tuning)::items; });
    index_t best = most;
    index_t best_cost = ceil_divide(items_of(most), at_a_time) * (most + overhead);
    for (index_t waves = 1; waves <= 4; ++waves) {
      index_t low = shortest;  // the least length with few enough items lies in [low, high]
      index_t high = most;
      while (low < high) {
        const index_t middle = (low + high) / 2;
        if (items_of(middle) <= waves * at_a_time) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      const index_t cost = ceil_divide(items_of(low), at_a_time) * (low + overhead);
      if (cost < best_cost) {
        best = low;
        best_cost = cost;
      }
    }
    return best;
  }

  static constexpr std::size_t at(int row_class) { return static_cast<std::size_t>(row_class); }

  std::span<const sequence> sequences_;
  attend_shape shape_;
  std::vector<group_range> groups_;   ///< with keys, of all sequences
  std::vector<index_t> first_group_;  ///< of each sequence, and one more
  std::array<index_t, attend_row_classes> longest_{};
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

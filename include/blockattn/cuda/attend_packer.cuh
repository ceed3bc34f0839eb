// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <blockattn/attention/attend_arguments.hpp>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/attend_tables.cuh>
#include <blockattn/cuda/attend_tuning.cuh>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Cuts a checked attend_blocks call into items and lays out its tables and partial rows. Cuts
/// depend on shapes alone, so results have the same bits on every device.
template <class K, class V>
class attend_packer {
 public:
  using sequence = attend_sequence<K, V>;
  using segment = key_segment<K, V>;

  /// How scores are formed without a segment's own factor, and the shape of the call.
  struct call_shape {
    index_t kv_heads;
    index_t group_heads;
    index_t columns;
    double scale;
    double softcap;
  };

  /// Of one row class.
  struct class_counts {
    index_t first_item = 0;
    index_t items = 0;
    index_t first_split = 0;
    index_t splits = 0;
  };

  attend_packer(std::span<const sequence> sequences, const call_shape& shape)
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
    counter count{*this};
    visit(count);
    index_t items = 0;
    index_t splits = 0;
    for (class_counts& counts : classes_) {
      counts.first_item = items;
      counts.first_split = splits;
      items += counts.items;
      splits += counts.splits;
    }
    blockattn::detail::workspace_layout layout;
    segments_at_ = layout.take<device_segment>(segments_);
    groups_at_ = layout.take<key_group>(std::ssize(groups_));
    items_at_ = layout.take<attend_item>(items);
    splits_at_ = layout.take<attend_split>(splits);
    runs_at_ = layout.take<partition_run>(runs_);
    table_size_ = layout.size();
    part_rows_at_ = layout.take<row_statistics>(shape.kv_heads * part_rows_);
    part_values_at_ = layout.take<float>(shape.kv_heads * part_rows_ * shape.columns);
    size_ = layout.size();
  }

  index_t table_size() const noexcept { return table_size_; }  ///< bytes to be copied
  index_t size() const noexcept { return size_; }              ///< bytes of device memory
  const class_counts& of_class(int row_class) const noexcept { return classes_[at(row_class)]; }

  /// Writes the tables.
  void write(std::span<std::byte> host) const {
    using blockattn::detail::piece;
    writer write{
        *this, piece<device_segment>(host, segments_at_), piece<key_group>(host, groups_at_), {},
        {},    piece<partition_run>(host, runs_at_)};
    for (int c = 0; c < attend_row_classes; ++c) {
      write.item[at(c)] = piece<attend_item>(host, items_at_) + of_class(c).first_item;
      write.split[at(c)] = piece<attend_split>(host, splits_at_) + of_class(c).first_split;
    }
    visit(write);
  }

  /// Where the tables of a row class lie, from their beginning.
  table_places places(int row_class) const {
    const class_counts& counts = of_class(row_class);
    return {.segments = segments_at_,
            .groups = groups_at_,
            .items = items_at_ + counts.first_item * index_t{sizeof(attend_item)},
            .splits = splits_at_ + counts.first_split * index_t{sizeof(attend_split)},
            .runs = runs_at_};
  }

  /// Partial rows in device memory, behind the room for tables.
  void describe_parts(std::span<std::byte> device, attend_parameters& p) const {
    p.part_rows = blockattn::detail::piece<row_statistics>(device, part_rows_at_);
    p.part_values = blockattn::detail::piece<float>(device, part_values_at_);
    p.part_row_count = part_rows_;
  }

 private:
  static constexpr std::size_t at(int row_class) { return static_cast<std::size_t>(row_class); }

  /// Segments [begin, end) of a sequence that form one key_group.
  struct group_range {
    index_t begin, end;
    index_t keys;
  };

  struct counter {
    attend_packer& self;

    void add_segment(const segment&) { ++self.segments_; }
    void add_group(const segment&, index_t, index_t) {}
    void add_item(int row_class, const attend_item&) { ++self.classes_[at(row_class)].items; }
    void add_split(int row_class, const attend_split&) { ++self.classes_[at(row_class)].splits; }
    void add_run(const partition_run&) { ++self.runs_; }
    index_t add_part_rows(index_t rows) {
      return std::exchange(self.part_rows_, self.part_rows_ + rows);
    }
  };

  struct writer {
    const attend_packer& self;
    device_segment* next_segment;
    key_group* next_group;
    std::array<attend_item*, attend_row_classes> item;
    std::array<attend_split*, attend_row_classes> split;
    partition_run* run;
    index_t segments = 0;
    index_t part_rows = 0;

    void add_segment(const segment& s) {
      ++segments;
      *next_segment++ = {.k = reinterpret_cast<const std::uint16_t*>(s.k.data),
                         .v = reinterpret_cast<const std::uint16_t*>(s.v.data),
                         .k_token_stride = s.k.token_stride,
                         .k_head_stride = s.k.head_stride,
                         .v_token_stride = s.v.token_stride,
                         .v_head_stride = s.v.head_stride,
                         .keys = static_cast<std::int32_t>(s.k.tokens)};
    }
    /// A group of `keys` keys that begins with segment `s`, which is added next.
    void add_group(const segment& s, index_t keys, index_t last_key) {
      *next_group++ = {.query_shift = s.query_shift,
                       .form = score_form_of(self.shape_.scale, self.shape_.softcap, s.score_scale),
                       .first_segment = static_cast<std::int32_t>(segments),
                       .keys = static_cast<std::int32_t>(keys),
                       .last_key = static_cast<std::int32_t>(last_key)};
    }
    void add_item(int row_class, const attend_item& i) { *item[at(row_class)]++ = i; }
    void add_split(int row_class, const attend_split& s) { *split[at(row_class)]++ = s; }
    void add_run(const partition_run& r) { *run++ = r; }
    index_t add_part_rows(index_t rows) { return std::exchange(part_rows, part_rows + rows); }
  };

  /// The segments of a sequence in order, the tail last.
  static index_t segment_count(const sequence& s) { return std::ssize(s.segments) + 1; }
  static const segment& segment_of(const sequence& s, index_t i) {
    return i + 1 == segment_count(s) ? s.tail : s.segments[static_cast<std::size_t>(i)];
  }

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

  std::span<const group_range> groups_of(index_t number) const {
    const index_t begin = first_group_[static_cast<std::size_t>(number)];
    const index_t end = first_group_[static_cast<std::size_t>(number) + 1];
    return std::span(groups_).subspan(static_cast<std::size_t>(begin),
                                      static_cast<std::size_t>(end - begin));
  }

  index_t rows_of(const sequence& s) const { return s.queries.size() * shape_.group_heads; }
  int class_of(const sequence& s) const { return attend_row_class(rows_of(s), shape_.columns); }
  index_t tile_keys(int row_class) const {
    return with_attend_tuning(shape_.columns, row_class,
                              [](auto tuning) -> index_t { return decltype(tuning)::keys; });
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
      const index_t tile_rows = attend_rows(row_class, shape_.columns);
      const index_t copies = ceil_divide(rows_of(s), tile_rows) * shape_.kv_heads;
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

  /// Tells `to` everything, in the order of the tables.
  template <class To>
  void visit(To& to) const {
    std::int32_t groups = 0;
    std::int32_t segments = 0;
    std::int32_t runs = 0;
    index_t number = 0;
    for (const sequence& s : sequences_) {
      const std::span<const group_range> here = groups_of(number++);
      for (const group_range& g : here) {
        to.add_group(segment_of(s, g.begin), g.keys,
                     is_tail(s, g) ? g.keys - s.queries.size() : no_last_key);
        for (index_t i = g.begin; i < g.end; ++i) to.add_segment(segment_of(s, i));
      }
      visit_rows(s, here, groups, segments, runs, to);
      for (const group_range& g : here) segments += static_cast<std::int32_t>(g.end - g.begin);
      groups += static_cast<std::int32_t>(here.size());
    }
  }

  /// The items, runs and splits of a sequence whose groups and segments begin at two numbers.
  template <class To>
  void visit_rows(const sequence& s,
                  std::span<const group_range> groups,
                  std::int32_t first_group,
                  std::int32_t first_segment,
                  std::int32_t& runs,
                  To& to) const {
    const int row_class = class_of(s);
    const index_t tile_rows = attend_rows(row_class, shape_.columns);
    const index_t rows = rows_of(s);
    for (index_t row = 0; row < rows; row += tile_rows) {
      const index_t rows_here = std::min(tile_rows, rows - row);
      const index_t last_query = (row + rows_here - 1) / shape_.group_heads;
      std::int32_t partitions = 0;
      index_t parts = 0;
      for_each_partition(s, groups, row_class, last_query, [&](const partition& p) {
        ++partitions;
        parts += p.parts;
      });
      attend_item item{.first_query = static_cast<std::int32_t>(s.queries.begin),
                       .rows = static_cast<std::int32_t>(rows),
                       .first_row = static_cast<std::int32_t>(row),
                       .part_row = -1};
      if (parts == 0) to.add_item(row_class, item);
      // One part is a result, unless there are more.
      if (parts > 1) {
        item.part_row = to.add_part_rows(parts * tile_rows);
        to.add_split(row_class, {.first_query = item.first_query,
                                 .first_row = item.first_row,
                                 .rows = static_cast<std::int32_t>(rows_here),
                                 .first_run = runs,
                                 .runs = partitions,
                                 .part_row = item.part_row});
        runs += partitions;
      }
      for_each_partition(s, groups, row_class, last_query, [&](const partition& p) {
        if (parts > 1) to.add_run({static_cast<std::int32_t>(p.parts), p.weight});
        item.weight = p.weight;
        item.group = first_group;
        item.segment = first_segment;
        cut(s, row_class, last_query, p, item, [&](const attend_item& part) {
          to.add_item(row_class, part);
          if (parts > 1) item.part_row += tile_rows;
        });
      });
    }
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
      index_t segment = g.begin;  // where the part begins, and the keys before it
      index_t keys_before = 0;
      for (; part < p.parts && part * p.tiles / p.parts < before + tiles; ++part) {
        const index_t begin = part * p.tiles / p.parts;
        const index_t first_key = (begin - before) * keys;
        for (; first_key >= keys_before + segment_of(s, segment).k.tokens; ++segment) {
          keys_before += segment_of(s, segment).k.tokens;
        }
        attend_item one = item;
        one.group = group;
        one.first_key = static_cast<std::int32_t>(first_key);
        one.tiles = static_cast<std::int32_t>((part + 1) * p.tiles / p.parts - begin);
        one.segment = static_cast<std::int32_t>(first_segment + segment - g.begin);
        one.offset = static_cast<std::int32_t>(first_key - keys_before);
        f(one);
      }
      before += tiles;
      ++group;
      first_segment += static_cast<std::int32_t>(g.end - g.begin);
    }
  }

  std::span<const sequence> sequences_;
  call_shape shape_;
  std::vector<group_range> groups_;   ///< with keys, of all sequences
  std::vector<index_t> first_group_;  ///< of each sequence, and one more
  std::array<index_t, attend_row_classes> longest_{};
  std::array<class_counts, attend_row_classes> classes_{};
  index_t segments_ = 0;
  index_t runs_ = 0;
  index_t part_rows_ = 0;
  index_t segments_at_ = 0;
  index_t groups_at_ = 0;
  index_t items_at_ = 0;
  index_t splits_at_ = 0;
  index_t runs_at_ = 0;
  index_t part_rows_at_ = 0;
  index_t part_values_at_ = 0;
  index_t table_size_ = 0;
  index_t size_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

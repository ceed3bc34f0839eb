// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/attend_cuts.cuh>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Lays out the tables and partial rows of a checked attend_blocks call.
template <class K, class V>
class attend_packer {
 public:
  using cuts = attend_cuts<K, V>;
  using sequence = typename cuts::sequence;
  using segment = typename cuts::segment;

  /// Of one row class.
  struct class_counts {
    index_t first_item = 0;
    index_t items = 0;
    index_t first_split = 0;
    index_t splits = 0;
  };

  attend_packer(std::span<const sequence> sequences, const attend_shape& shape)
      : cuts_(sequences, shape) {
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
    groups_at_ = layout.take<key_group>(cuts_.group_count());
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
  using group_range = typename cuts::group_range;
  using partition = typename cuts::partition;

  static constexpr std::size_t at(int row_class) { return static_cast<std::size_t>(row_class); }

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
                       .form = score_form_of(self.cuts_.shape().scale, self.cuts_.shape().softcap,
                                             s.score_scale),
                       .first_segment = static_cast<std::int32_t>(segments),
                       .keys = static_cast<std::int32_t>(keys),
                       .last_key = static_cast<std::int32_t>(last_key)};
    }
    void add_item(int row_class, const attend_item& i) { *item[at(row_class)]++ = i; }
    void add_split(int row_class, const attend_split& s) { *split[at(row_class)]++ = s; }
    void add_run(const partition_run& r) { *run++ = r; }
    index_t add_part_rows(index_t rows) { return std::exchange(part_rows, part_rows + rows); }
  };

  /// Tells `to` everything, in the order of the tables.
  template <class To>
  void visit(To& to) const {
    std::int32_t groups = 0;
    std::int32_t segments = 0;
    std::int32_t runs = 0;
    index_t number = 0;
    for (const sequence& s : cuts_.sequences()) {
      const std::span<const group_range> here = cuts_.groups_of(number++);
      for (const group_range& g : here) {
        to.add_group(cuts::segment_of(s, g.begin), g.keys,
                     cuts::is_tail(s, g) ? g.keys - s.queries.size() : no_last_key);
        for (index_t i = g.begin; i < g.end; ++i) to.add_segment(cuts::segment_of(s, i));
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
    const int row_class = cuts_.class_of(s);
    const index_t tile_rows = cuts_.tile_rows(row_class);
    const index_t rows = cuts_.rows_of(s);
    for (index_t row = 0; row < rows; row += tile_rows) {
      const index_t rows_here = std::min(tile_rows, rows - row);
      const index_t last_query = (row + rows_here - 1) / cuts_.shape().group_heads;
      std::int32_t partitions = 0;
      index_t parts = 0;
      cuts_.for_each_partition(s, groups, row_class, last_query, [&](const partition& p) {
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
      cuts_.for_each_partition(s, groups, row_class, last_query, [&](const partition& p) {
        if (parts > 1) to.add_run({static_cast<std::int32_t>(p.parts), p.weight});
        item.weight = p.weight;
        item.group = first_group;
        item.segment = first_segment;
        cuts_.cut(s, row_class, last_query, p, item, [&](const attend_item& part) {
          to.add_item(row_class, part);
          if (parts > 1) item.part_row += tile_rows;
        });
      });
    }
  }

  cuts cuts_;
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

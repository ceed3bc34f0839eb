// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/tile_mask.cuh>
#include <blockattn/plan/plan_set.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What one cta of a forward call does for one head: a run of a query tile's key tiles.
struct alignas(16) work_item {
  std::int32_t query_tile;
  std::int32_t tiles;       ///< key tiles; 0 for rows that see nothing
  std::int32_t span;        ///< the run begins in this span ...
  std::int32_t first_tile;  ///< ... with this key tile
  std::int32_t part;        ///< number of the partial result; -1 for a whole row of tiles
};

/// A query tile whose key tiles several items share.
struct split_tile {
  std::int32_t query_tile;
  std::int32_t first_part;
  std::int32_t parts;
};

/// A tile_span of key tiles, and the keys of a partial tile that some query of the plan sees.
struct alignas(16) device_span {
  std::int32_t inner_begin, inner_end;
  std::int32_t slices_begin, slices_end;
  std::uint64_t seen[2];  ///< a bit for each key, also of other rows of tiles
};

/// One plan in device memory.
struct plan_lists {
  const device_span* spans;  ///< and one more, so that a prefetch may pass the end
  const tile_slice* slices;  ///< of the partial tiles, at their spans' slices_begin
  const work_item* items;    ///< most tiles first
  const split_tile* splits;
  std::int32_t item_count;
  std::int32_t split_count;
};

/// Lays out a plan set as it lies in device memory: the plan_lists of each plan, the plan of each
/// head, then the lists.
class plan_packer {
 public:
  struct counts {
    index_t items = 0;
    index_t splits = 0;
    index_t parts = 0;
  };

  /// Rows of tiles are cut so that no item exceeds 1/512 of the work of all heads, and not below 16
  /// tiles: half a fair share for 256 ctas, about as many as an H100 runs at a time. The cuts, and
  /// with them the last bits of results, depend on nothing but the plans and the number of heads.
  plan_packer(const plan_set& plans, index_t query_heads)
      : plans_(plans), query_heads_(query_heads) {
    index_t tiles = 0;
    for (index_t head = 0; head < query_heads; ++head) {
      const tile_statistics& statistics = plans.of_head(head).statistics();
      tiles += statistics.full_tiles + statistics.partial_tiles;
    }
    longest_item_ = std::max<index_t>(16, ceil_divide(tiles, 512));
    blockattn::detail::workspace_layout layout;
    lists_ = layout.take<plan_lists>(std::ssize(plans.plans()));
    plan_of_head_ = layout.take<std::int32_t>(query_heads);
    for (const tile_plan& plan : plans.plans()) {
      const counts n = place(plan, layout).n;
      most_ = {std::max(most_.items, n.items), std::max(most_.splits, n.splits),
               std::max(most_.parts, n.parts)};
    }
    size_ = layout.size();
  }

  index_t size() const noexcept { return size_; }  ///< bytes
  /// Of each count the largest of any plan.
  const counts& most() const noexcept { return most_; }
  index_t offset_of_lists() const noexcept { return lists_; }
  index_t offset_of_heads() const noexcept { return plan_of_head_; }

  /// Writes to `host` what is to be copied to `device`.
  void write(std::span<std::byte> host, std::byte* device) const {
    using blockattn::detail::piece;
    blockattn::detail::workspace_layout layout;
    layout.take<plan_lists>(std::ssize(plans_.plans()));
    layout.take<std::int32_t>(query_heads_);
    for (index_t head = 0; head < query_heads_; ++head) {
      piece<std::int32_t>(host, plan_of_head_)[head] =
          static_cast<std::int32_t>(plans_.plan_index(head));
    }
    plan_lists* lists = piece<plan_lists>(host, lists_);
    for (const tile_plan& plan : plans_.plans()) {
      const places at = place(plan, layout);
      const tile_lists& rows = plan.by_query();
      write_spans(plan, piece<device_span>(host, at.spans));
      write_slices(plan, piece<tile_slice>(host, at.slices));
      write_items(rows, piece<work_item>(host, at.items), piece<split_tile>(host, at.splits));
      *lists = {.spans = reinterpret_cast<const device_span*>(device + at.spans),
                .slices = reinterpret_cast<const tile_slice*>(device + at.slices),
                .items = reinterpret_cast<const work_item*>(device + at.items),
                .splits = reinterpret_cast<const split_tile*>(device + at.splits),
                .item_count = static_cast<std::int32_t>(at.n.items),
                .split_count = static_cast<std::int32_t>(at.n.splits)};
      ++lists;
    }
  }

 private:
  struct places {
    counts n;
    index_t spans, slices, items, splits;
  };

  places place(const tile_plan& plan, blockattn::detail::workspace_layout& layout) const {
    places at{};
    for (const std::int64_t tiles : plan.by_query().tile_count) {
      const index_t parts = std::max<index_t>(1, ceil_divide(tiles, longest_item_));
      at.n.items += parts;
      at.n.splits += parts > 1 ? 1 : 0;
      at.n.parts += parts > 1 ? parts : 0;
    }
    at.spans = layout.take<device_span>(std::ssize(plan.by_query().spans) + 1);
    at.slices = layout.take<tile_slice>(std::ssize(plan.by_query().slice_ids));
    at.items = layout.take<work_item>(at.n.items);
    at.splits = layout.take<split_tile>(at.n.splits);
    return at;
  }

  static void write_spans(const tile_plan& plan, device_span* out) {
    for (const tile_span& span : plan.by_query().spans) {
      *out = {span.inner_begin, span.inner_end, span.slices_begin, span.slices_end, {0, 0}};
      if (!span.is_full()) write_seen(plan, plan.key_tile(span.inner_begin), out->seen);
      ++out;
    }
    *out = {};
  }

  /// Sets the bits of the keys of a tile (at most 128) that some query sees.
  static void write_seen(const tile_plan& plan, const index_range& keys, std::uint64_t* words) {
    const std::vector<index_range>& all = plan.seen_keys();
    auto run = std::partition_point(all.begin(), all.end(),
                                    [&keys](const index_range& r) { return r.end <= keys.begin; });
    for (; run != all.end() && run->begin < keys.end; ++run) {
      const index_range part = intersect(*run, keys);
      for (index_t key = part.begin - keys.begin; key < part.end - keys.begin;) {
        const index_t end = std::min(part.end - keys.begin, (key / 64 + 1) * 64);
        words[key / 64] |= ~std::uint64_t{0} >> (64 - (end - key)) << (key % 64);
        key = end;
      }
    }
  }

  static void write_slices(const tile_plan& plan, tile_slice* out) {
    const tile_lists& rows = plan.by_query();
    for (index_t tile = 0; tile < rows.outer_tiles; ++tile) {
      const index_range queries = plan.query_tile(tile);
      for (const tile_span& span : rows.spans_of(tile)) {
        if (span.is_full()) continue;
        const index_range keys = plan.key_tile(span.inner_begin);
        const index_t drift = keys.begin - queries.begin;
        const auto limit = [drift](index_t diagonal) {  // tiles are far smaller than 2^14
          return static_cast<std::int16_t>(std::clamp<index_t>(diagonal - drift, -16384, 16384));
        };
        for (index_t id = span.slices_begin; id < span.slices_end; ++id) {
          const auto slice_id = rows.slice_ids[static_cast<std::size_t>(id)];
          const slice s = cut(plan.slices()[static_cast<std::size_t>(slice_id)], queries, keys);
          out[id] = {.row_begin = static_cast<std::int16_t>(s.queries.begin - queries.begin),
                     .row_end = static_cast<std::int16_t>(s.queries.end - queries.begin),
                     .column_begin = static_cast<std::int16_t>(s.keys.begin - keys.begin),
                     .column_end = static_cast<std::int16_t>(s.keys.end - keys.begin),
                     .lower = limit(s.lower),
                     .upper = limit(s.upper)};
        }
      }
    }
  }

  void write_items(const tile_lists& rows, work_item* items, split_tile* splits) const {
    work_item* item = items;
    std::int32_t part = 0;
    for (index_t tile = 0; tile < rows.outer_tiles; ++tile) {
      const index_t tiles = rows.tile_count[static_cast<std::size_t>(tile)];
      const index_t parts = std::max<index_t>(1, ceil_divide(tiles, longest_item_));
      const auto query_tile = static_cast<std::int32_t>(tile);
      if (parts > 1) *splits++ = {query_tile, part, static_cast<std::int32_t>(parts)};
      auto span = static_cast<std::int32_t>(rows.span_begin[static_cast<std::size_t>(tile)]);
      index_t before_span = 0;  // tiles
      const auto tiles_in = [&rows](std::int32_t s) {
        const tile_span& run = rows.spans[static_cast<std::size_t>(s)];
        return run.inner_end - run.inner_begin;
      };
      for (index_t p = 0; p < parts; ++p) {
        const index_t begin = p * tiles / parts;
        const index_t end = (p + 1) * tiles / parts;
        std::int32_t first_tile = 0;
        if (end > begin) {
          for (; before_span + tiles_in(span) <= begin; ++span) before_span += tiles_in(span);
          first_tile = rows.spans[static_cast<std::size_t>(span)].inner_begin +
                       static_cast<std::int32_t>(begin - before_span);
        }
        *item++ = {query_tile, static_cast<std::int32_t>(end - begin), span, first_tile,
                   parts > 1 ? part++ : -1};
      }
    }
    std::sort(items, item, [](const work_item& a, const work_item& b) {
      if (a.tiles != b.tiles) return a.tiles > b.tiles;
      return a.query_tile != b.query_tile ? a.query_tile < b.query_tile : a.part < b.part;
    });
  }

  const plan_set plans_;
  index_t query_heads_;
  index_t longest_item_ = 0;
  counts most_;
  index_t lists_ = 0;
  index_t plan_of_head_ = 0;
  index_t size_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

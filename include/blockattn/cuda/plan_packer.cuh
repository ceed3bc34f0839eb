// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/plan_lists.cuh>
#include <blockattn/plan/plan_set.hpp>
#include <limits>
#include <span>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Sets a bit for each token of `range`, from bit 0 on, that lies in one of the sorted disjoint
/// runs; there are words for all of them.
inline void set_bits(const std::vector<index_range>& runs,
                     const index_range& range,
                     std::uint64_t* words) {
  auto run = std::partition_point(runs.begin(), runs.end(),
                                  [&range](const index_range& r) { return r.end <= range.begin; });
  for (; run != runs.end() && run->begin < range.end; ++run) {
    const index_range part = intersect(*run, range);
    for (index_t token = part.begin - range.begin; token < part.end - range.begin;) {
      const index_t end = std::min(part.end - range.begin, (token / 64 + 1) * 64);
      words[token / 64] |= ~std::uint64_t{0} >> (64 - (end - token)) << (token % 64);
      token = end;
    }
  }
}

/// One direction of a plan, to be written for a device.
class oriented_lists {
 public:
  oriented_lists(const tile_plan& plan, list_kind kind)
      : plan_(plan),
        by_key_(kind == key_lists),
        lists_(by_key_ ? plan.by_key() : plan.by_query()) {}

  const tile_lists& lists() const noexcept { return lists_; }

  /// `taking_part`: sorted disjoint runs of the inner tokens that see, or are seen by, another.
  void write_spans(const std::vector<index_range>& taking_part, device_span* out) const {
    for (const tile_span& span : lists_.spans) {
      *out = {span.inner_begin, span.inner_end, span.slices_begin, span.slices_end, {0, 0}};
      if (!span.is_full()) set_bits(taking_part, inner(span.inner_begin), out->seen);
      ++out;
    }
    *out = {};
  }

  void write_slices(tile_slice* out) const {
    for (index_t tile = 0; tile < lists_.outer_tiles; ++tile) {
      const index_range rows = outer(tile);
      for (const tile_span& span : lists_.spans_of(tile)) {
        if (span.is_full()) continue;
        const index_range columns = inner(span.inner_begin);
        const index_t drift = columns.begin - rows.begin;
        const auto limit = [drift](index_t diagonal) {  // tiles are far smaller than 2^14
          return static_cast<std::int16_t>(std::clamp<index_t>(diagonal - drift, -16384, 16384));
        };
        for (index_t id = span.slices_begin; id < span.slices_end; ++id) {
          const auto number = lists_.slice_ids[static_cast<std::size_t>(id)];
          const slice& whole = plan_.slices()[static_cast<std::size_t>(number)];
          const slice s = cut(by_key_ ? whole.transposed() : whole, rows, columns);
          out[id] = {.row_begin = static_cast<std::int16_t>(s.queries.begin - rows.begin),
                     .row_end = static_cast<std::int16_t>(s.queries.end - rows.begin),
                     .column_begin = static_cast<std::int16_t>(s.keys.begin - columns.begin),
                     .column_end = static_cast<std::int16_t>(s.keys.end - columns.begin),
                     .lower = limit(s.lower),
                     .upper = limit(s.upper)};
        }
      }
    }
  }

  /// Cuts every outer tile into items of at most `longest` tiles, in order.
  void write_items(index_t longest, work_item* item, split_tile* split) const {
    std::int32_t part = 0;
    for (index_t tile = 0; tile < lists_.outer_tiles; ++tile) {
      const index_t tiles = lists_.tile_count[static_cast<std::size_t>(tile)];
      const index_t parts = std::max<index_t>(1, ceil_divide(tiles, longest));
      const auto outer_tile = static_cast<std::int32_t>(tile);
      if (parts > 1) *split++ = {outer_tile, part, static_cast<std::int32_t>(parts)};
      auto span = static_cast<std::int32_t>(lists_.span_begin[static_cast<std::size_t>(tile)]);
      index_t before_span = 0;  // tiles
      const auto tiles_in = [this](std::int32_t s) {
        const tile_span& run = lists_.spans[static_cast<std::size_t>(s)];
        return run.inner_end - run.inner_begin;
      };
      for (index_t p = 0; p < parts; ++p) {
        const index_t begin = p * tiles / parts;
        const index_t end = (p + 1) * tiles / parts;
        std::int32_t first_tile = 0;
        if (end > begin) {
          for (; before_span + tiles_in(span) <= begin; ++span) before_span += tiles_in(span);
          first_tile = lists_.spans[static_cast<std::size_t>(span)].inner_begin +
                       static_cast<std::int32_t>(begin - before_span);
        }
        *item++ = {outer_tile, static_cast<std::int32_t>(end - begin), span, first_tile,
                   parts > 1 ? part++ : -1};
      }
    }
  }

 private:
  index_range outer(index_t tile) const {
    return by_key_ ? plan_.key_tile(tile) : plan_.query_tile(tile);
  }
  index_range inner(index_t tile) const {
    return by_key_ ? plan_.query_tile(tile) : plan_.key_tile(tile);
  }

  const tile_plan& plan_;
  bool by_key_;
  const tile_lists& lists_;
};

/// Lays out a plan set as it lies in device memory: list_kinds plan_lists of each plan, the plan of
/// each head, then the lists. Lists by whole rows and columns are there when every plan has its
/// transposed lists.
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
    for (const tile_plan& plan : plans.plans()) transposed_ = transposed_ && plan.has_transposed();
    blockattn::detail::workspace_layout layout;
    lists_ = layout.take<plan_lists>(list_kinds * std::ssize(plans.plans()));
    plan_of_head_ = layout.take<std::int32_t>(query_heads);
    for (const tile_plan& plan : plans.plans()) {
      const counts n = place(plan, forward_lists, layout).n;
      most_ = {std::max(most_.items, n.items), std::max(most_.splits, n.splits),
               std::max(most_.parts, n.parts)};
      if (!transposed_) continue;
      place(plan, query_lists, layout);
      place(plan, key_lists, layout);
    }
    size_ = layout.size();
  }

  index_t size() const noexcept { return size_; }  ///< bytes
  /// Of each count of the forward lists the largest of any plan.
  const counts& most() const noexcept { return most_; }
  bool transposed() const noexcept { return transposed_; }
  index_t offset_of_lists() const noexcept { return lists_; }
  index_t offset_of_heads() const noexcept { return plan_of_head_; }

  /// Writes to `host` what is to be copied to `device`.
  void write(std::span<std::byte> host, std::byte* device) const {
    using blockattn::detail::piece;
    blockattn::detail::workspace_layout layout;
    layout.take<plan_lists>(list_kinds * std::ssize(plans_.plans()));
    layout.take<std::int32_t>(query_heads_);
    for (index_t head = 0; head < query_heads_; ++head) {
      piece<std::int32_t>(host, plan_of_head_)[head] =
          static_cast<std::int32_t>(plans_.plan_index(head));
    }
    plan_lists* lists = piece<plan_lists>(host, lists_);
    for (const tile_plan& plan : plans_.plans()) {
      lists[forward_lists] = write_lists(plan, forward_lists, layout, host, device);
      if (transposed_) {
        lists[query_lists] = write_lists(plan, query_lists, layout, host, device);
        lists[key_lists] = write_lists(plan, key_lists, layout, host, device);
      }
      lists += list_kinds;
    }
  }

 private:
  struct places {
    counts n;
    index_t spans, slices, items, splits, order, seen;
  };

  index_t longest_item(list_kind kind) const {
    return kind == forward_lists ? longest_item_ : std::numeric_limits<index_t>::max();
  }

  static index_t seen_words(const tile_plan& plan, list_kind kind) {
    return kind == key_lists ? ceil_divide(plan.key_tokens(), index_t{64}) : 0;
  }

  places place(const tile_plan& plan,
               list_kind kind,
               blockattn::detail::workspace_layout& layout) const {
    const tile_lists& lists = oriented_lists(plan, kind).lists();
    places at{};
    for (const std::int64_t tiles : lists.tile_count) {
      const index_t parts = std::max<index_t>(1, ceil_divide(tiles, longest_item(kind)));
      at.n.items += parts;
      at.n.splits += parts > 1 ? 1 : 0;
      at.n.parts += parts > 1 ? parts : 0;
    }
    at.spans = layout.take<device_span>(std::ssize(lists.spans) + 1);
    at.slices = layout.take<tile_slice>(std::ssize(lists.slice_ids));
    at.items = layout.take<work_item>(at.n.items);
    at.splits = layout.take<split_tile>(at.n.splits);
    at.order = layout.take<std::int32_t>(lists.outer_tiles);
    at.seen = layout.take<std::uint64_t>(seen_words(plan, kind));
    return at;
  }

  plan_lists write_lists(const tile_plan& plan,
                         list_kind kind,
                         blockattn::detail::workspace_layout& layout,
                         std::span<std::byte> host,
                         std::byte* device) const {
    using blockattn::detail::piece;
    const places at = place(plan, kind, layout);
    const oriented_lists oriented(plan, kind);
    oriented.write_spans(kind == key_lists ? seeing_queries(plan) : plan.seen_keys(),
                         piece<device_span>(host, at.spans));
    oriented.write_slices(piece<tile_slice>(host, at.slices));
    auto* const items = piece<work_item>(host, at.items);
    oriented.write_items(longest_item(kind), items, piece<split_tile>(host, at.splits));
    if (kind == forward_lists) {
      std::sort(items, items + at.n.items, [](const work_item& a, const work_item& b) {
        if (a.tiles != b.tiles) return a.tiles > b.tiles;
        return a.outer_tile != b.outer_tile ? a.outer_tile < b.outer_tile : a.part < b.part;
      });
    }
    auto* const order = piece<std::int32_t>(host, at.order);
    const tile_lists& listed = oriented.lists();
    std::copy(listed.order.begin(), listed.order.end(), order);
    if (kind == key_lists) order_in_classes(listed, order);
    auto* const seen = piece<std::uint64_t>(host, at.seen);
    if (const index_t words = seen_words(plan, kind); words > 0) {
      std::fill_n(seen, words, 0);
      set_bits(plan.seen_keys(), {0, plan.key_tokens()}, seen);
    }
    return {.spans = reinterpret_cast<const device_span*>(device + at.spans),
            .slices = reinterpret_cast<const tile_slice*>(device + at.slices),
            .items = reinterpret_cast<const work_item*>(device + at.items),
            .splits = reinterpret_cast<const split_tile*>(device + at.splits),
            .order = reinterpret_cast<const std::int32_t*>(device + at.order),
            .seen = reinterpret_cast<const std::uint64_t*>(device + at.seen),
            .item_count = static_cast<std::int32_t>(at.n.items),
            .split_count = static_cast<std::int32_t>(at.n.splits)};
  }

  /// Puts key tiles whose numbers of query tiles have one bit width in the order of their tokens.
  /// Long ones still come before those half as long, so that all ctas end at about the same time,
  /// but those at work together read the same queries, and add to the same d_q, out of cache: 8 to
  /// 20 % of backward for block masks on an H100. (Causal forward is 3 % slower in this order.)
  static void order_in_classes(const tile_lists& lists, std::int32_t* order) {
    const auto class_of = [&lists](std::int32_t tile) {
      return std::bit_width(
          static_cast<std::uint64_t>(lists.tile_count[static_cast<std::size_t>(tile)]));
    };
    std::sort(order, order + lists.outer_tiles, [&class_of](std::int32_t a, std::int32_t b) {
      return class_of(a) != class_of(b) ? class_of(a) > class_of(b) : a < b;
    });
  }

  /// Sorted disjoint runs of the queries that see a key. Slices are ordered by their first query.
  static std::vector<index_range> seeing_queries(const tile_plan& plan) {
    std::vector<index_range> runs;
    for (const slice& s : plan.slices()) {
      if (runs.empty() || runs.back().end < s.queries.begin) {
        runs.push_back(s.queries);
      } else {
        runs.back().end = std::max(runs.back().end, s.queries.end);
      }
    }
    return runs;
  }

  const plan_set plans_;
  index_t query_heads_;
  index_t longest_item_ = 0;
  bool transposed_ = true;
  counts most_;
  index_t lists_ = 0;
  index_t plan_of_head_ = 0;
  index_t size_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

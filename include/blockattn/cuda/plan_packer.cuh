// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/oriented_lists.cuh>
#include <blockattn/plan/plan_set.hpp>
#include <limits>
#include <span>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

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
    const oriented_lists oriented(plan, kind);
    const tile_lists& lists = oriented.lists();
    const oriented_lists::counts listed = oriented.count();
    places at{};
    for (const std::int64_t tiles : lists.tile_count) {
      const index_t parts = std::max<index_t>(1, ceil_divide(tiles, longest_item(kind)));
      at.n.items += parts;
      at.n.splits += parts > 1 ? 1 : 0;
      at.n.parts += parts > 1 ? parts : 0;
    }
    at.spans = layout.take<device_span>(listed.spans + 1);
    at.slices = layout.take<tile_slice>(listed.slices);
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
    auto* const items = piece<work_item>(host, at.items);
    oriented.write(kind == key_lists ? seeing_queries(plan) : plan.seen_keys(), longest_item(kind),
                   piece<device_span>(host, at.spans), piece<tile_slice>(host, at.slices), items,
                   piece<split_tile>(host, at.splits));
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

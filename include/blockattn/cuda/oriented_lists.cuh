// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/error.hpp>
#include <blockattn/cuda/plan_lists.cuh>
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

/// One direction of a plan, to be written for a device: there the spans of an outer tile lie side
/// by side, and each partial tile has a span and slices of its own.
class oriented_lists {
 public:
  struct counts {
    index_t spans = 0;
    index_t slices = 0;
  };

  oriented_lists(const tile_plan& plan, list_kind kind)
      : plan_(plan),
        by_key_(kind == key_lists),
        lists_(by_key_ ? plan.by_key() : plan.by_query()) {}

  const tile_lists& lists() const noexcept { return lists_; }

  counts count() const {
    counts n;
    for (index_t tile = 0; tile < lists_.outer_tiles; ++tile) {
      for (const tile_span& span : lists_.spans_of(tile)) {
        n.spans += span.is_full() ? 1 : span.tiles();
        n.slices += span.tiles() * std::ssize(lists_.slices_of(span));
      }
    }
    constexpr index_t most = std::numeric_limits<std::int32_t>::max() - 1;
    blockattn::detail::require(n.spans <= most && n.slices <= most, "cuda: the plan has ", n.spans,
                               " spans and ", n.slices, " slices in its partial tiles, a device ",
                               "plan holds at most ", most, " of each; use larger tiles or split ",
                               "the mask");
    return n;
  }

  /// Writes all spans and slices, and cuts every outer tile into items of at most `longest` tiles,
  /// in order. `taking_part`: sorted disjoint runs of the inner tokens that see, or are seen by,
  /// another.
  void write(const std::vector<index_range>& taking_part,
             index_t longest,
             device_span* spans,
             tile_slice* slices,
             work_item* item,
             split_tile* split) const {
    std::int32_t first_span = 0;
    std::int32_t first_slice = 0;
    std::int32_t part = 0;
    for (index_t tile = 0; tile < lists_.outer_tiles; ++tile) {
      std::int32_t span = first_span;
      for (const tile_span& run : lists_.spans_of(tile)) {
        if (run.is_full()) {
          spans[span++] = {run.inner_begin, run.inner_end, 0, 0, {0, 0}};
          continue;
        }
        const std::span<const std::int32_t> ids = lists_.slices_of(run);
        for (std::int32_t inner_tile = run.inner_begin; inner_tile < run.inner_end; ++inner_tile) {
          const std::int32_t slices_end = first_slice + static_cast<std::int32_t>(ids.size());
          spans[span] = {inner_tile, inner_tile + 1, first_slice, slices_end, {0, 0}};
          set_bits(taking_part, inner(inner_tile), spans[span++].seen);
          write_slices(outer(tile), inner(inner_tile), ids, slices + first_slice);
          first_slice = slices_end;
        }
      }
      const index_t tiles = lists_.tile_count[static_cast<std::size_t>(tile)];
      const index_t parts = std::max<index_t>(1, ceil_divide(tiles, longest));
      if (parts > 1) {
        *split++ = {static_cast<std::int32_t>(tile), part, static_cast<std::int32_t>(parts)};
      }
      write_items(tile, parts, spans, first_span, parts > 1 ? part : -1, item);
      item += parts;
      if (parts > 1) part += static_cast<std::int32_t>(parts);
      first_span = span;
    }
    spans[first_span] = {};
  }

 private:
  index_range outer(index_t tile) const {
    return by_key_ ? plan_.key_tile(tile) : plan_.query_tile(tile);
  }
  index_range inner(index_t tile) const {
    return by_key_ ? plan_.query_tile(tile) : plan_.key_tile(tile);
  }

  void write_slices(const index_range& rows,
                    const index_range& columns,
                    std::span<const std::int32_t> ids,
                    tile_slice* out) const {
    const index_t drift = columns.begin - rows.begin;
    const auto limit = [drift](index_t diagonal) {  // tiles are far smaller than 2^14
      return static_cast<std::int16_t>(std::clamp<index_t>(diagonal - drift, -16384, 16384));
    };
    for (const std::int32_t id : ids) {
      const slice& whole = plan_.slices()[static_cast<std::size_t>(id)];
      const slice s = cut(by_key_ ? whole.transposed() : whole, rows, columns);
      *out++ = {.row_begin = static_cast<std::int16_t>(s.queries.begin - rows.begin),
                .row_end = static_cast<std::int16_t>(s.queries.end - rows.begin),
                .column_begin = static_cast<std::int16_t>(s.keys.begin - columns.begin),
                .column_end = static_cast<std::int16_t>(s.keys.end - columns.begin),
                .lower = limit(s.lower),
                .upper = limit(s.upper)};
    }
  }

  /// Cuts one outer tile, whose written spans begin at `span`, into `parts` items. Their partial
  /// results are `part` and those after it; -1 when there is one item.
  void write_items(index_t tile,
                   index_t parts,
                   const device_span* spans,
                   std::int32_t span,
                   std::int32_t part,
                   work_item* item) const {
    const index_t tiles = lists_.tile_count[static_cast<std::size_t>(tile)];
    const auto tiles_in = [spans](std::int32_t s) {
      return spans[s].inner_end - spans[s].inner_begin;
    };
    index_t before_span = 0;  // tiles
    for (index_t p = 0; p < parts; ++p) {
      const index_t begin = p * tiles / parts;
      const index_t end = (p + 1) * tiles / parts;
      std::int32_t first_tile = 0;
      if (end > begin) {
        for (; before_span + tiles_in(span) <= begin; ++span) before_span += tiles_in(span);
        first_tile = spans[span].inner_begin + static_cast<std::int32_t>(begin - before_span);
      }
      *item++ = {static_cast<std::int32_t>(tile), static_cast<std::int32_t>(end - begin), span,
                 first_tile, parts > 1 ? part++ : -1};
    }
  }

  const tile_plan& plan_;
  bool by_key_;
  const tile_lists& lists_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/plan/make_tile_plan.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "support/random.hpp"

namespace blockattn_test {

/// The dense truth: who sees whom, pair by pair, from slice::contains alone.
class dense_mask {
 public:
  explicit dense_mask(const attention_mask& mask)
      : keys_(mask.key_tokens()),
        visits_(static_cast<std::size_t>(mask.query_tokens() * mask.key_tokens())) {
    for (index_t query = 0; query < mask.query_tokens(); ++query) {
      for (index_t key = 0; key < keys_; ++key) {
        for (const slice& s : mask.slices()) visits_[at(query, key)] += s.contains(query, key);
      }
    }
  }

  int& visits(index_t query, index_t key) { return visits_[at(query, key)]; }
  index_t pairs(const index_range& queries, const index_range& keys) const {
    index_t count = 0;
    for (index_t query = queries.begin; query < queries.end; ++query) {
      for (index_t key = keys.begin; key < keys.end; ++key) count += visits_[at(query, key)];
    }
    return count;
  }
  bool disjoint() const {
    return std::all_of(visits_.begin(), visits_.end(), [](int visits) { return visits <= 1; });
  }
  bool all_zero() const {
    return std::all_of(visits_.begin(), visits_.end(), [](int visits) { return visits == 0; });
  }

 private:
  std::size_t at(index_t query, index_t key) const {
    return static_cast<std::size_t>(query * keys_ + key);
  }
  index_t keys_;
  std::vector<int> visits_;
};

inline bool meets(const slice& s, const index_range& queries, const index_range& keys) {
  for (index_t query = queries.begin; query < queries.end; ++query) {
    for (index_t key = keys.begin; key < keys.end; ++key) {
      if (s.contains(query, key)) return true;
    }
  }
  return false;
}

/// What a list says about one tile.
struct tile_verdict {
  bool met = false;
  bool full = false;
  std::vector<std::int32_t> slice_ids = {};
  friend bool operator==(const tile_verdict&, const tile_verdict&) = default;
};

/// Reads the lists as a table [outer][inner]; the first broken rule of their form as text, or "".
inline std::string read_lists(const tile_lists& lists,
                              index_t outer_tiles,
                              index_t inner_tiles,
                              std::vector<std::vector<tile_verdict>>& table) {
  const auto outer_size = static_cast<std::size_t>(outer_tiles);
  table.assign(outer_size, std::vector<tile_verdict>(static_cast<std::size_t>(inner_tiles)));
  if (lists.outer_tiles != outer_tiles || lists.first_span.size() != outer_size ||
      lists.first_link.size() != lists.spans.size() + 1 || lists.tile_count.size() != outer_size ||
      lists.order.size() != outer_size) {
    return "a list has a wrong length";
  }
  if (lists.first_link.front() != 0 ||
      lists.first_link.back() != static_cast<std::int32_t>(lists.links.size()) ||
      !std::is_sorted(lists.first_link.begin(), lists.first_link.end())) {
    return "first_link does not cover the links";
  }
  std::vector<bool> used(lists.slice_ids.size(), false);
  for (index_t outer = 0; outer < outer_tiles; ++outer) {
    tile_span previous;
    index_t tiles = 0;
    for (const tile_span& span : lists.spans_of(outer)) {
      if (span.inner_begin < previous.inner_end) return "spans overlap or are out of order";
      if (span.inner_end <= span.inner_begin || span.inner_end > inner_tiles) return "bad span";
      const auto slices = lists.slices_of(span);
      const auto slices_before = lists.slices_of(previous);
      if (previous.tiles() > 0 && span.inner_begin == previous.inner_end &&
          std::equal(slices.begin(), slices.end(), slices_before.begin(), slices_before.end())) {
        return "a span is not maximal";
      }
      for (index_t inner = span.inner_begin; inner < span.inner_end; ++inner) {
        table[static_cast<std::size_t>(outer)][static_cast<std::size_t>(inner)] = {
            true, span.is_full(), {slices.begin(), slices.end()}};
      }
      std::fill(used.begin() + span.slices_begin, used.begin() + span.slices_end, true);
      tiles += span.tiles();
      previous = span;
    }
    if (lists.tile_count[static_cast<std::size_t>(outer)] != tiles) return "tile_count is wrong";
  }
  if (std::find(used.begin(), used.end(), false) != used.end()) {
    return "slice_ids holds entries that no span uses";
  }

  std::vector<std::int32_t> order(outer_size);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&lists](auto a, auto b) {
    const auto tiles_of = [&](auto i) { return lists.tile_count[static_cast<std::size_t>(i)]; };
    return tiles_of(a) != tiles_of(b) ? tiles_of(a) > tiles_of(b) : a < b;
  });
  return order == lists.order ? "" : "order is not longest first";
}

/// The law of tile plans: the first broken clause as text, or "".
inline std::string broken_law(const attention_mask& mask, const tile_plan& plan) {
  if (plan.query_tokens() != mask.query_tokens() || plan.key_tokens() != mask.key_tokens() ||
      plan.slices() != mask.slices()) {
    return "the plan is of another mask";
  }
  const index_t query_tiles = ceil_divide(mask.query_tokens(), plan.shape().queries);
  const index_t key_tiles = ceil_divide(mask.key_tokens(), plan.shape().keys);
  std::vector<std::vector<tile_verdict>> by_query;
  std::string broken = read_lists(plan.by_query(), query_tiles, key_tiles, by_query);
  if (!broken.empty()) return broken;

  const dense_mask dense(mask);
  if (!dense.disjoint()) return "the test's mask is not disjoint";
  dense_mask unvisited = dense;
  tile_statistics expected;
  for (index_t i = 0; i < query_tiles; ++i) {
    for (index_t j = 0; j < key_tiles; ++j) {
      const index_range queries = plan.query_tile(i);
      const index_range keys = plan.key_tile(j);
      const index_t area = queries.size() * keys.size();
      const index_t pairs = dense.pairs(queries, keys);
      const tile_verdict& found =
          by_query[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)];
      const auto here = [&] { return detail::sentence(" in tile (", i, ", ", j, ")"); };
      if (found.met != (pairs > 0)) return "empty is wrong" + here();
      if (found.met && found.full != (pairs == area)) return "full is wrong" + here();
      expected.visible_pairs += pairs;
      expected.empty_tiles += pairs == 0;
      expected.full_tiles += pairs == area;
      expected.partial_tiles += pairs > 0 && pairs < area;
      expected.tile_area += pairs > 0 ? area : 0;

      std::vector<std::int32_t> meeting;
      for (std::size_t id = 0; id < mask.slices().size(); ++id) {
        if (meets(mask.slices()[id], queries, keys)) {
          meeting.push_back(static_cast<std::int32_t>(id));
        }
      }
      if (found.met && !found.full && found.slice_ids != meeting) return "wrong slices" + here();

      // Visit the tile's pairs as a kernel does: all of them, or by row through keys_of.
      for (index_t query = queries.begin; query < queries.end && found.met; ++query) {
        if (found.full) {
          for (index_t key = keys.begin; key < keys.end; ++key) --unvisited.visits(query, key);
        }
        for (const std::int32_t id : found.slice_ids) {
          const slice& s = mask.slices()[static_cast<std::size_t>(id)];
          if (!s.queries.contains(query)) continue;
          const index_range seen = intersect(s.keys_of(query), keys);
          for (index_t key = seen.begin; key < seen.end; ++key) --unvisited.visits(query, key);
        }
      }
    }
  }
  if (!unvisited.all_zero()) return "the spans do not reach each visible pair exactly once";

  const tile_statistics& found = plan.statistics();
  if (found.visible_pairs != expected.visible_pairs || found.full_tiles != expected.full_tiles ||
      found.partial_tiles != expected.partial_tiles || found.empty_tiles != expected.empty_tiles ||
      found.tile_area != expected.tile_area) {
    return "statistics are wrong";
  }

  std::vector<index_range> seen_keys;
  for (index_t key = 0; key < mask.key_tokens(); ++key) {
    if (dense.pairs({0, mask.query_tokens()}, {key, key + 1}) == 0) continue;
    if (seen_keys.empty() || seen_keys.back().end != key) seen_keys.push_back({key, key});
    seen_keys.back().end = key + 1;
  }
  if (plan.seen_keys() != seen_keys) return "seen_keys is wrong";

  if (!plan.has_transposed()) {
    return plan.by_key().spans.empty() && plan.by_key().outer_tiles == 0 ? "" : "unasked lists";
  }
  std::vector<std::vector<tile_verdict>> by_key;
  broken = read_lists(plan.by_key(), key_tiles, query_tiles, by_key);
  if (!broken.empty()) return "transposed: " + broken;
  for (std::size_t i = 0; i < by_query.size(); ++i) {
    for (std::size_t j = 0; j < by_key.size(); ++j) {
      if (by_query[i][j] != by_key[j][i]) return "the two directions differ";
    }
  }
  return "";
}

}  // namespace blockattn_test

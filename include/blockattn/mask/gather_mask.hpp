// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <blockattn/mask/gathered_axis.hpp>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

namespace detail {

/// Rewrites slices over tokens as slices over the ranks of two gathered axes.
class slice_gatherer {
 public:
  slice_gatherer(const gathered_axis& queries, const gathered_axis& keys)
      : queries_(&queries), keys_(&keys) {}

  void add(const slice& s) {
    // The hull of the picked tokens decides: a slice whose band does not cut it is a rectangle of
    // ranks, however scattered the tokens are.
    const slice picked = {queries_->hull_in(s.queries), keys_->hull_in(s.keys), s.lower, s.upper};
    if (covers_rectangle(picked)) {
      add_rectangle(picked.queries, picked.keys);
      return;
    }
    for (const gathered_run& run : queries_->runs_in(picked.queries)) {
      add_query_run(run, trimmed(cut(picked, run.tokens, picked.keys)));
    }
  }

  std::vector<slice> take() { return std::move(slices_); }

 private:
  static bool covers_rectangle(const slice& s) noexcept {
    return s.lower <= s.keys.begin - (s.queries.end - 1) &&
           s.keys.end - 1 - s.queries.begin <= s.upper;
  }

  void add_rectangle(const index_range& queries, const index_range& keys) {
    slices_.push_back({queries_->ranks_in(queries), keys_->ranks_in(keys)});
  }

  /// One run of consecutive queries. The keys that all its queries see become one rectangle; key
  /// runs that a diagonal cuts stay bands, whole.
  void add_query_run(const gathered_run& query_run, const slice& s) {
    if (s.queries.empty()) return;
    const index_range seen_by_all = {std::max(s.keys.begin, s.queries.end - 1 + s.lower),
                                     std::min(s.keys.end, s.queries.begin + s.upper + 1)};
    const index_range core = {straddling(seen_by_all.begin, s).end,
                              straddling(seen_by_all.end, s).begin};
    if (core.empty()) {
      add_key_runs(query_run, s, s.keys);
      return;
    }
    add_key_runs(query_run, s, {s.keys.begin, core.begin});
    add_rectangle(s.queries, core);
    add_key_runs(query_run, s, {core.end, s.keys.end});
  }

  void add_key_runs(const gathered_run& query_run, const slice& s, const index_range& keys) {
    for (const gathered_run& key_run : keys_->runs_in(keys)) {
      const slice piece = cut(s, s.queries, intersect(keys, key_run.tokens));
      slices_.push_back(shifted(piece, query_run.rank - query_run.tokens.begin,
                                key_run.rank - key_run.tokens.begin));
    }
  }

  /// The part within the slice of the key run that has tokens on both sides of a cut before `key`;
  /// {key, key} when the cut falls between runs.
  index_range straddling(index_t key, const slice& s) const noexcept {
    if (key <= s.keys.begin || key >= s.keys.end) return {key, key};
    for (const gathered_run& run : keys_->runs_in({key, key + 1})) {
      if (run.tokens.begin < key) return intersect(run.tokens, s.keys);
    }
    return {key, key};
  }

  const gathered_axis* queries_;
  const gathered_axis* keys_;
  std::vector<slice> slices_;
};

inline attention_mask gathered_mask(const attention_mask& mask,
                                    const gathered_axis& queries,
                                    const gathered_axis& keys) {
  slice_gatherer gatherer(queries, keys);
  for (const slice& s : mask.slices()) gatherer.add(s);
  return attention_mask::from_disjoint_slices(queries.size(), keys.size(), gatherer.take());
}

}  // namespace detail

/// The rows and columns of a mask that two index lists pick, for example the tokens of a cached
/// prompt that are recomputed (CacheBlend, arXiv 2405.16444; EPIC, arXiv 2410.15332):
///
///     visible(r, c) = mask sees (query_index[r], key_index[c])
///
/// Token indices decide, never ranks: a bottom-right triangle over the picked rows would let them
/// see the future.
///
/// \param query_index strictly increasing indices into the mask's queries
/// \param key_index strictly increasing indices into the mask's keys
///
/// A band over consecutive tokens stays a band; elsewhere it is cut along the maximal runs of
/// consecutive tokens. O(slices * query runs * (1 + key runs on a diagonal) * log runs).
/// Errors: an index outside its axis; a list that does not increase strictly.
inline attention_mask gather_mask(const attention_mask& mask,
                                  std::span<const index_t> query_index,
                                  std::span<const index_t> key_index) {
  return detail::gathered_mask(
      mask, detail::gathered_axis("gather_mask", "query_index", query_index, mask.query_tokens()),
      detail::gathered_axis("gather_mask", "key_index", key_index, mask.key_tokens()));
}

/// The rows of a mask that an index list picks, over all its keys. Errors: as gather_mask.
inline attention_mask gather_queries(const attention_mask& mask,
                                     std::span<const index_t> query_index) {
  return detail::gathered_mask(
      mask,
      detail::gathered_axis("gather_queries", "query_index", query_index, mask.query_tokens()),
      detail::gathered_axis(mask.key_tokens()));
}

}  // namespace blockattn::inline BLOCKATTN_ABI

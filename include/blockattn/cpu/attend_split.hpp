// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/attention/attend_arguments.hpp>

/// \file
/// How attend_blocks is cut: by shape alone, never by the number of threads, so that results have
/// the same bits.

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// One sequence's keys on one axis: its segments in order, then the tail as the last segment.
template <class K, class V>
class segment_list {
 public:
  explicit segment_list(const attend_sequence<K, V>& sequence) noexcept : sequence_(&sequence) {}

  index_t size() const noexcept { return static_cast<index_t>(sequence_->segments.size()) + 1; }
  bool is_tail(index_t s) const noexcept { return s + 1 == size(); }
  const key_segment<K, V>& operator[](index_t s) const noexcept {
    return is_tail(s) ? sequence_->tail : sequence_->segments[static_cast<std::size_t>(s)];
  }

  /// Segments [begin, end) of one partition, starting at `begin`; their keys are weighted together.
  index_t partition_end(index_t begin) const noexcept {
    index_t end = begin + 1;
    while (end < size() && (*this)[end].partition == (*this)[begin].partition) ++end;
    return end;
  }

  index_t keys(index_t begin, index_t end) const noexcept {
    index_t count = 0;
    for (index_t s = begin; s < end; ++s) count += (*this)[s].k.tokens;
    return count;
  }

 private:
  const attend_sequence<K, V>* sequence_;
};

/// A run of keys of one partition that one task takes: keys [begin, end) counted from the
/// partition's first key.
struct key_chunk {
  index_t first_segment = 0;  ///< of the partition
  index_t end_segment = 0;
  index_range keys;
};

/// Calls f(chunk, number of its partition) for the chunks of a sequence in order. Partitions
/// without keys have no chunk and no number.
template <class K, class V, class F>
inline void for_each_chunk(const segment_list<K, V>& list, index_t chunk_keys, const F& f) {
  std::size_t partition = 0;
  for (index_t begin = 0; begin < list.size();) {
    const index_t end = list.partition_end(begin);
    const index_t keys = list.keys(begin, end);
    for (index_t at = 0; at < keys; at += chunk_keys) {
      f(key_chunk{begin, end, {at, std::min(keys, at + chunk_keys)}}, partition);
    }
    if (keys > 0) ++partition;
    begin = end;
  }
}

template <class K, class V>
inline index_t count_chunks(const segment_list<K, V>& list, index_t chunk_keys) noexcept {
  index_t count = 0;
  for_each_chunk(list, chunk_keys, [&](const key_chunk&, std::size_t) { ++count; });
  return count;
}

/// Most keys of one task, when `work` is the sum over row tiles of the keys that each meets: a
/// sixteenth of the work, so that no task holds up many threads, but at least 512 keys, below which
/// the merge would show.
constexpr index_t keys_per_chunk(index_t work) noexcept {
  constexpr index_t enough_tasks = 16;
  constexpr index_t fewest_keys = 512;
  return std::max(fewest_keys, round_up(ceil_divide(work, enough_tasks), 64));
}

/// Where one sequence's tasks and partial states begin.
struct sequence_work {
  index_t first_task = 0;  ///< tasks: (kv head, row tile, chunk), chunk fastest
  index_t chunks = 0;
  index_t row_tiles = 0;
  index_t first_state = 0;  ///< partial states: (chunk, query, head); meaningful when chunks > 1
  index_t first_merge = 0;  ///< merge tasks, one per query; meaningful when chunks > 1
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

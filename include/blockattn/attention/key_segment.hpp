// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/storage.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// A run of keys and values that a kernel reads in place: a cached block, a page, a shared prefix
/// or a sequence's own growing tail. Non-owning; nothing is ever written through it.
///
/// Keys are stored rotated for the segment's own positions (a cached block: 0, 1, ..., len - 1). A
/// query q that was rotated for its own position meets key j with the score
///   s_j = score_scale * softcap(scale * (U(query_shift) q) . k_j),
/// where U is RoPE without its magnitude (see rope). Rotations add up, so a block that stands at
/// offset o needs query_shift = -o: (R_p q) . (R_(o+j) k_j) = (U_(-o) R_p q) . (R_j k_j). One copy
/// of the keys serves any number of prompts at different offsets at the same time.
///
/// Segments with the same `partition` are joined by plain softmax (partitions do not decrease along
/// a list, its tail included); the joint state (O, lse) of each enters the merge with the
/// log-weight
///   log_weight_scale * lse + log_weight
/// in place of lse. The defaults are plain softmax over all. APE (arXiv 2502.05431): all context
/// segments in one partition, score_scale = 1 / T, log_weight_scale = sigma; the rest in another.
template <storage_scalar K = float, storage_scalar V = K>
struct key_segment {
  heads_view<const K> k;        ///< (keys, kv_heads, head_dim)
  heads_view<const V> v;        ///< (keys, kv_heads, value_dim)
  double query_shift = 0;       ///< positions; finite, may be negative and fractional
  double score_scale = 1;       ///< finite
  double log_weight_scale = 1;  ///< finite
  double log_weight = 0;        ///< natural log; -inf takes the partition out of the merge
  index_t partition = 0;        ///< its segments agree on log_weight_scale and log_weight
};

}  // namespace blockattn::inline BLOCKATTN_ABI

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/core/philox.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI {

/// What block dropout draws. A block is *local* when it sees no other block, *global* when it sees
/// all earlier blocks of its sequence. Every block sees itself, causally.
enum class block_dropout_rule : std::uint8_t {
  /// Each earlier block is hidden from each later one, pair by pair. Keep 1 is full causal, keep 0
  /// block-diagonal; with exempt_final_block that is block attention.
  hide_pairs,
  /// Each context block is hidden from the final block; context blocks are local. Keep 1 is block
  /// attention, keep 0 block-diagonal.
  hide_context,
  /// Each context block is local, or global with probability 1 - keep; the final block is global.
  /// Keep 1 is block attention, keep 0 full causal.
  global_blocks,
  /// The sequence keeps its final block, or with probability 1 - keep one of its blocks that hold
  /// source tokens, each equally likely (the last one too), takes that role: it is global, blocks
  /// before it are local, rows after it see nothing, not even themselves. Keep 1 is block
  /// attention.
  random_final
};

/// What `block_dropout_mask` draws from.
struct block_dropout_options {
  block_dropout_rule rule = block_dropout_rule::hide_pairs;
  double keep_probability = 1;      ///< in [0, 1]
  std::uint64_t seed = 0;           ///< equal seeds draw equal masks; one for each training step
  bool exempt_final_block = false;  ///< hide_pairs only: the final block sees every block
  /// Who sees the sink tokens of another block. `own`: no one. `own_and_final`: whoever sees the
  /// block, so hidden blocks hide their sinks. `all`: every later block of the sequence, also where
  /// the block is hidden. A shared set is never hidden.
  blockattn::sink_visibility sink_visibility = sink_visibility::own_and_final;
};

namespace detail {

inline void check_block_dropout(const block_dropout_options& options) {
  constexpr const char* place = "block_dropout_options";
  check_enumerator(place, "rule", options.rule, block_dropout_rule::random_final);
  require(0 <= options.keep_probability && options.keep_probability <= 1, place,
          ": keep_probability is ", options.keep_probability, ", must be in [0, 1]");
  require(!options.exempt_final_block || options.rule == block_dropout_rule::hide_pairs, place,
          ": exempt_final_block is true, but only the rule hide_pairs can exempt the final block");
  check_enumerator(place, "sink_visibility", options.sink_visibility, sink_visibility::all);
}

/// One kept-or-dropped draw: the upper 53 random bits as a number in [0, 1), less than
/// keep_probability. Exact: keep 1 always keeps, keep 0 never, and what lies between has its
/// probability rounded up to a multiple of 2^-53.
constexpr bool draws_kept(const block_dropout_options& options,
                          index_t query_block,
                          index_t key_block) noexcept {
  const std::uint64_t bits = random_bits(options.seed, static_cast<std::uint64_t>(query_block),
                                         static_cast<std::uint64_t>(key_block));
  return static_cast<double>(bits >> 11) * 0x1p-53 < options.keep_probability;
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI

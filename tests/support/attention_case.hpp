// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/arguments.hpp>
#include <blockattn/attention/checks.hpp>
#include <blockattn/plan/make_tile_plan.hpp>
#include <blockattn/plan/plan_set.hpp>
#include <sstream>

#include "support/hostile_tensor.hpp"
#include "support/random_attention_mask.hpp"

namespace blockattn_test {

/// Who sees whom in each head, and in which tiles: what a backend makes its plans from.
struct head_masks {
  std::vector<attention_mask> masks;
  std::vector<tile_shape> shapes;     ///< (masks)
  std::vector<index_t> head_to_mask;  ///< (query_heads); empty: one mask for all heads

  head_masks() = default;
  head_masks(const attention_mask& mask, const tile_shape& shape) : masks{mask}, shapes{shape} {}

  const attention_mask& of_head(index_t head) const {
    return masks[head_to_mask.empty()
                     ? 0
                     : static_cast<std::size_t>(head_to_mask[static_cast<std::size_t>(head)])];
  }
  std::vector<tile_plan> make_plans(const plan_options& options = {}) const {
    std::vector<tile_plan> plans;
    for (std::size_t i = 0; i < masks.size(); ++i) {
      plans.push_back(make_tile_plan(masks[i], shapes[i], options));
    }
    return plans;
  }
  /// (query_tokens) true for the rows that see something in some head's mask.
  std::vector<bool> seeing_rows() const {
    std::vector<bool> sees(static_cast<std::size_t>(masks[0].query_tokens()), false);
    for (const attention_mask& mask : masks) {
      for (const slice& s : mask.slices()) {
        for (index_t query = s.queries.begin; query < s.queries.end; ++query) {
          if (!s.keys_of(query).empty()) sees[static_cast<std::size_t>(query)] = true;
        }
      }
    }
    return sees;
  }
  /// (key_tokens) true for the keys that some query of some head's mask sees.
  std::vector<bool> seen_keys() const {
    std::vector<bool> seen(static_cast<std::size_t>(masks[0].key_tokens()), false);
    for (const attention_mask& mask : masks) {
      for (const slice& s : mask.slices()) {
        for (index_t query = s.queries.begin; query < s.queries.end; ++query) {
          const index_range keys = s.keys_of(query);
          for (index_t key = keys.begin; key < keys.end; ++key) {
            seen[static_cast<std::size_t>(key)] = true;
          }
        }
      }
    }
    return seen;
  }
};

/// Everything about an attention call but its storage types, drawn from one seed: the same seed
/// gives the same call for every backend.
struct attention_case {
  std::uint64_t seed = 0;
  std::string kind;  ///< of the first mask
  head_masks masks;
  index_t query_heads = 1;
  index_t kv_heads = 1;
  index_t head_dim = 8;
  index_t value_dim = 8;
  attention_options options;
  double magnitude = 1;  ///< standard deviation of q: large ones make softmax nearly one-hot
  bool with_lse = true;
  bool with_sink_logits = false;
  tensor_layout q, k, v, o, lse;

  index_t query_tokens() const { return masks.masks[0].query_tokens(); }
  index_t key_tokens() const { return masks.masks[0].key_tokens(); }

  /// The repro line and the parameters that matter.
  std::string describe() const {
    std::ostringstream text;
    text << "repeat with BLOCKATTN_SEED=" << seed << ": " << kind << ", " << query_tokens()
         << " queries x " << key_tokens() << " keys, " << masks.masks.size() << " masks, tiles "
         << masks.shapes[0].queries << " x " << masks.shapes[0].keys << ", heads " << query_heads
         << "/" << kv_heads << ", head_dim " << head_dim << ", value_dim " << value_dim
         << ", scale " << detail::resolved_scale(options.scale, head_dim) << ", softcap "
         << options.softcap << ", lse " << with_lse << ", sink logits " << with_sink_logits;
    return text.str();
  }
};

/// What a backend can take; the widest is the CPU's.
struct case_limits {
  index_t max_block = 30;  ///< tokens, three times as many in a tenth of the cases
  std::vector<index_t> head_dims = {8, 16, 24, 40, 64, 72, 80, 96, 128, 256};
  bool any_tile_shape = true;  ///< else the one of `shape`
  tile_shape shape = {};
};

inline tile_shape random_tile_shape(random_source& random) {
  static constexpr index_t sides[] = {1, 2, 5, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 1 << 20};
  const auto side = [&] { return sides[random.integer(0, std::ssize(sides) - 1)]; };
  const index_t queries = side();
  return {queries, side()};
}

inline attention_case random_attention_case(std::uint64_t seed, const case_limits& limits = {}) {
  random_source random(seed);
  const auto one_of = [&](const std::vector<index_t>& values) {
    return values[static_cast<std::size_t>(random.integer(0, std::ssize(values) - 1))];
  };
  const auto shape = [&] {
    return limits.any_tile_shape ? random_tile_shape(random) : limits.shape;
  };
  attention_case c;
  c.seed = seed;
  // Every tenth case is large; most are quick.
  const index_t max_block = random.chance(0.1) ? 3 * limits.max_block : limits.max_block;
  const named_mask first = random_attention_mask(random, max_block);
  c.kind = first.kind;
  c.masks = {first.mask, shape()};
  c.kv_heads = random.integer(1, 3);
  c.query_heads = c.kv_heads * random.integer(1, 4);
  c.head_dim = one_of(limits.head_dims);
  c.value_dim = random.chance(0.5) ? c.head_dim : one_of(limits.head_dims);
  if (random.chance(0.15)) {  // a mask and a tile shape per head
    for (index_t more = random.integer(1, 2); more > 0; --more) {
      c.masks.masks.push_back(
          random_masks(random, 0.5)(first.mask.query_tokens(), first.mask.key_tokens(), 3));
      c.masks.shapes.push_back(shape());
    }
    for (index_t head = 0; head < c.query_heads; ++head) {
      c.masks.head_to_mask.push_back(random.integer(0, std::ssize(c.masks.masks) - 1));
    }
  }
  const double usual = detail::resolved_scale({}, c.head_dim);
  if (random.chance(0.5)) c.options.scale = usual * random.real(-2, 2);
  if (random.chance(0.1)) c.options.scale = 0;
  if (random.chance(0.3)) c.options.softcap = random.real(0.5, 30);
  if (random.chance(0.1)) c.magnitude = 40;
  c.with_lse = random.chance(0.9);
  c.with_sink_logits = random.chance(0.3);
  for (tensor_layout* layout : {&c.q, &c.k, &c.v, &c.o, &c.lse}) {
    *layout = random_tensor_layout(random);
  }
  return c;
}

/// The tensors of a case in the wanted storage types. Keys and values that no row sees and queries
/// that see nothing are NaN.
template <class Q, class K, class V, class O>
struct attention_tensors {
  using accumulator_type = accumulator_t<Q, K, V, O>;

  hostile_tensor<Q> q;
  hostile_tensor<K> k;
  hostile_tensor<V> v;
  hostile_tensor<O> o;
  hostile_tensor<accumulator_type> lse;
  std::vector<accumulator_type> sink_logits;
  bool with_lse;

  explicit attention_tensors(const attention_case& c)
      : q(c.query_tokens(), c.query_heads, c.head_dim, c.q),
        k(c.key_tokens(), c.kv_heads, c.head_dim, c.k),
        v(c.key_tokens(), c.kv_heads, c.value_dim, c.v),
        o(c.query_tokens(), c.query_heads, c.value_dim, c.o),
        lse(c.query_tokens(), c.query_heads, 1, c.lse),
        with_lse(c.with_lse) {
    random_source random(c.seed ^ 0x5eedULL);
    const std::vector<bool> seen = c.masks.seen_keys();
    const auto is_seen = [&](index_t key) { return seen[static_cast<std::size_t>(key)]; };
    const std::vector<bool> sees = c.masks.seeing_rows();
    q.fill_normal(random, c.magnitude,
                  [&](index_t token) { return sees[static_cast<std::size_t>(token)]; });
    k.fill_normal(random, 1, is_seen);
    v.fill_normal(random, 1, is_seen);
    if (c.with_sink_logits) {
      for (index_t head = 0; head < c.query_heads; ++head) {
        const double logit =
            random.chance(0.2) ? -std::numeric_limits<double>::infinity() : 3 * random.normal();
        sink_logits.push_back(static_cast<accumulator_type>(logit));
      }
    }
  }

  forward_arguments<Q, K, V, O> arguments() const {
    return {.q = q.view(),
            .k = k.view(),
            .v = v.view(),
            .o = o.view(),
            .lse = with_lse ? lse.as_lse() : lse_view<accumulator_type>{},
            .sink_logits = sink_logits};
  }

  bool margins_untouched() const {
    return q.margins_untouched() && k.margins_untouched() && v.margins_untouched() &&
           o.margins_untouched() && lse.margins_untouched();
  }
};

}  // namespace blockattn_test

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_arguments.hpp>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "support/hostile_tensor.hpp"

namespace blockattn_test {

/// A key segment without its memory.
struct segment_shape {
  index_t keys = 0;
  double query_shift = 0;
  double score_scale = 1;
  double log_weight_scale = 1;
  double log_weight = 0;
  index_t partition = 0;
};

struct sequence_shape {
  index_range queries;
  std::vector<segment_shape> segments = {};
  segment_shape tail = {};
};

/// Everything about an attend_blocks call but its storage types.
struct attend_case {
  std::uint64_t seed = 1;
  index_t query_tokens = 0;
  index_t query_heads = 1;
  index_t kv_heads = 1;
  index_t head_dim = 8;
  index_t value_dim = 8;
  std::optional<double> scale = std::nullopt;
  double softcap = 0;
  rope_options rotation = {};
  double magnitude = 1;  ///< standard deviation of q
  bool with_lse = true;
  bool with_sink_logits = false;
  bool hostile_layouts = true;
  std::vector<sequence_shape> sequences = {};

  std::string describe() const {
    std::ostringstream text;
    text << "repeat with BLOCKATTN_SEED=" << seed << ": " << query_tokens << " queries, heads "
         << query_heads << "/" << kv_heads << ", head_dim " << head_dim << ", value_dim "
         << value_dim << ", scale " << scale.value_or(-1) << ", softcap " << softcap
         << ", sink logits " << with_sink_logits << ", lse " << with_lse;
    for (const sequence_shape& sequence : sequences) {
      text << "\n  [" << sequence.queries.begin << ", " << sequence.queries.end << ") keys";
      for (const segment_shape& segment : sequence.segments) text << " " << describe(segment);
      text << ", tail " << describe(sequence.tail);
    }
    return text.str();
  }

 private:
  /// keys/shift/score_scale:partition*weights
  static std::string describe(const segment_shape& s) {
    std::ostringstream text;
    text << s.keys << "/" << s.query_shift << "/" << s.score_scale << ":" << s.partition << "*"
         << s.log_weight_scale << "+" << s.log_weight;
    return text.str();
  }
};

/// The tensors of a case. Rows of q that no sequence has are NaN.
template <class Q, class K, class V, class O>
class attend_tensors {
 public:
  using C = accumulator_t<Q, K, V, O>;

  explicit attend_tensors(const attend_case& shape)
      : random_(shape.seed ^ 0x5eedULL),
        hostile_(shape.hostile_layouts),
        q_(shape.query_tokens, shape.query_heads, shape.head_dim, layout()),
        o_(shape.query_tokens, shape.query_heads, shape.value_dim, layout()),
        lse_(shape.query_tokens, shape.query_heads, 1, layout()),
        with_lse_(shape.with_lse),
        rope_([&] {
          rope_options with_dim = shape.rotation;
          with_dim.head_dim = shape.head_dim;
          return rope(with_dim);
        }()),
        options_{.scale = shape.scale, .softcap = shape.softcap} {
    const auto is_used = [&](index_t token) {
      for (const sequence_shape& sequence : shape.sequences) {
        if (sequence.queries.contains(token)) return true;
      }
      return false;
    };
    for (index_t token = 0; token < shape.query_tokens; ++token) {
      if (is_used(token)) fill(token_slice(q_.view(), token, 1), shape.magnitude);
    }
    segments_.reserve(shape.sequences.size());
    for (const sequence_shape& sequence : shape.sequences) {
      std::vector<key_segment<K, V>> segments;
      for (const segment_shape& segment : sequence.segments)
        segments.push_back(make_segment(shape, segment));
      segments_.push_back(std::move(segments));
      sequences_.push_back({.queries = sequence.queries,
                            .segments = segments_.back(),
                            .tail = make_segment(shape, sequence.tail)});
    }
    if (shape.with_sink_logits) {
      for (index_t head = 0; head < shape.query_heads; ++head) {
        sink_logits_.push_back(static_cast<C>(
            random_.chance(0.2) ? -std::numeric_limits<double>::infinity() : 3 * random_.normal()));
      }
    }
  }
  attend_tensors(const attend_tensors&) = delete;
  attend_tensors& operator=(const attend_tensors&) = delete;

  attend_arguments<Q, K, V, O> arguments() const {
    return {.q = q_.view(),
            .o = o_.view(),
            .lse = with_lse_ ? lse_.as_lse() : lse_view<C>{},
            .sink_logits = sink_logits_,
            .sequences = sequences_};
  }
  attend_options options() const {
    attend_options with_rope = options_;
    with_rope.rope = &rope_;
    return with_rope;
  }

  /// No input, no margin and no row outside the sequences was written.
  bool others_untouched() const {
    for (const auto& tensor : keys_) {
      if (!tensor->margins_untouched()) return false;
    }
    for (const auto& tensor : values_) {
      if (!tensor->margins_untouched()) return false;
    }
    if (!q_.margins_untouched() || !o_.margins_untouched() || !lse_.margins_untouched())
      return false;
    if (!with_lse_ && !lse_.all_untouched()) return false;
    for (index_t token = 0; token < q_.view().tokens; ++token) {
      bool used = false;
      for (const auto& sequence : sequences_) used = used || sequence.queries.contains(token);
      if (used) continue;
      for (index_t head = 0; head < q_.view().heads; ++head) {
        if (!is_fill(o_.view().row(token, head), o_.view().head_dim)) return false;
        if (!is_fill(&lse_.as_lse().at(token, head), 1)) return false;
      }
    }
    return true;
  }
  bool outputs_untouched() const { return o_.all_untouched() && lse_.all_untouched(); }

 private:
  tensor_layout layout() { return hostile_ ? random_tensor_layout(random_) : tensor_layout{}; }

  key_segment<K, V> make_segment(const attend_case& shape, const segment_shape& segment) {
    keys_.push_back(std::make_unique<hostile_tensor<K>>(segment.keys, shape.kv_heads,
                                                        shape.head_dim, layout()));
    values_.push_back(std::make_unique<hostile_tensor<V>>(segment.keys, shape.kv_heads,
                                                          shape.value_dim, layout()));
    fill(keys_.back()->view(), 1);
    fill(values_.back()->view(), 1);
    return {.k = keys_.back()->view(),
            .v = values_.back()->view(),
            .query_shift = segment.query_shift,
            .score_scale = segment.score_scale,
            .log_weight_scale = segment.log_weight_scale,
            .log_weight = segment.log_weight,
            .partition = segment.partition};
  }

  /// Nearly normal values of variance 1 times `magnitude`: sums of four uniform ones, all from one
  /// draw. std::normal_distribution would take most of the time of these tests (a logl per draw
  /// with clang).
  template <class T>
  void fill(const heads_view<T>& rows, double magnitude) {
    const double unit = magnitude * std::sqrt(3.0) / 0x1p16;
    for (index_t token = 0; token < rows.tokens; ++token) {
      for (index_t head = 0; head < rows.heads; ++head) {
        for (index_t t = 0; t < rows.head_dim; ++t) {
          double sum = -2 * 0xffff;
          for (std::uint64_t bits = random_.engine()(), part = 0; part < 4; ++part, bits >>= 16)
            sum += static_cast<double>(bits & 0xffff);
          store_scalar(rows.row(token, head)[t], unit * sum);
        }
      }
    }
  }

  template <class T>
  static bool is_fill(const T* values, index_t count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count) * sizeof(T); ++i) {
      if (bytes[i] != 0xff) return false;
    }
    return true;
  }

  random_source random_;
  bool hostile_;
  hostile_tensor<Q> q_;
  hostile_tensor<O> o_;
  hostile_tensor<C> lse_;
  bool with_lse_;
  rope rope_;
  attend_options options_;
  std::vector<std::unique_ptr<hostile_tensor<K>>> keys_;
  std::vector<std::unique_ptr<hostile_tensor<V>>> values_;
  std::vector<std::vector<key_segment<K, V>>> segments_;
  std::vector<attend_sequence<K, V>> sequences_;
  std::vector<C> sink_logits_;
};

/// Draws a call: several sequences with gaps between their queries; cached blocks, pages, one long
/// segment, nothing at all; tails shorter and longer than the queries; plain and weighted
/// partitions. The size is kept such that the oracle takes some 10 ms.
inline attend_case random_attend_case(std::uint64_t seed) {
  random_source random(seed);
  const auto one_of = [&](const auto& values) {
    return *(std::begin(values) + random.integer(0, std::ssize(values) - 1));
  };
  static constexpr index_t head_dims[] = {8, 8, 40, 64, 72, 128, 256};
  static constexpr index_t groups[] = {1, 1, 2, 3, 8};
  attend_case c;
  c.seed = seed;
  c.head_dim = one_of(head_dims);
  c.value_dim = one_of(head_dims);
  c.kv_heads = random.integer(1, 2);
  const index_t group = one_of(groups);
  c.query_heads = c.kv_heads * group;
  if (random.chance(0.5)) c.scale = random.real(-2, 2) / std::sqrt(static_cast<double>(c.head_dim));
  if (random.chance(0.1)) c.scale = 0;
  if (random.chance(0.3)) c.softcap = random.real(0.5, 30);
  if (random.chance(0.1)) c.magnitude = 40;
  c.with_lse = random.chance(0.9);
  c.with_sink_logits = random.chance(0.3);
  c.rotation.pairing = random.chance(0.5) ? rope_pairing::half_split : rope_pairing::interleaved;
  if (random.chance(0.3)) c.rotation.rotary_dim = c.head_dim / 2;

  // Weights belong to a partition; half of the calls know no partitions.
  const bool weighted = random.chance(0.5);
  static constexpr double weight_scales[] = {1, 0.81, 0, -0.5};
  const double log_weights[] = {0, 1.3, -2, random.chance(0.3) ? -HUGE_VAL : 0.5};
  std::vector<std::pair<double, double>> weights;
  for (int p = 0; p < 3; ++p) weights.emplace_back(one_of(weight_scales), one_of(log_weights));
  static constexpr double score_scales[] = {1, 1, 1 / 0.9, 0.5, -1, 0};
  static constexpr double shifts[] = {0, 0, -1, -300, 17, -0.75, -1048577.5};
  const auto segment = [&](index_t keys) {
    segment_shape s{.keys = keys, .query_shift = one_of(shifts)};
    if (!weighted) return s;
    s.partition = random.integer(0, 2);
    std::tie(s.log_weight_scale, s.log_weight) = weights[static_cast<std::size_t>(s.partition)];
    s.score_scale = one_of(score_scales);
    return s;
  };

  index_t budget = 1000000 / (c.query_heads * (c.head_dim + c.value_dim));  // query, key pairs
  index_t token = 0;
  for (index_t count = random.integer(0, 4); count > 0; --count) {
    static constexpr index_t query_counts[] = {0, 1, 1, 2, 5, 9, 30, 120};
    sequence_shape sequence;
    index_t queries = one_of(query_counts);
    if (queries > budget / 20) queries = 1;
    token += random.chance(0.4) ? random.integer(1, 3) : 0;
    sequence.queries = {token, token + queries};
    token += queries;
    const index_t most_keys = budget / (2 * std::max<index_t>(1, queries));
    switch (random.integer(0, 3)) {
      case 0:  // blocks
        for (index_t s = random.integer(0, 5); s > 0; --s)
          sequence.segments.push_back(segment(
              random.chance(0.2) ? 0 : random.integer(1, std::min<index_t>(70, most_keys))));
        break;
      case 1: {  // pages of one place, or of many
        const segment_shape page = segment(16);
        const bool alike = random.chance(0.5);
        for (index_t s = std::min<index_t>(random.integer(5, 40), most_keys / 16); s > 0; --s)
          sequence.segments.push_back(alike ? page : segment(16));
        break;
      }
      case 2:  // one long segment, whose keys are cut when there are few rows
        sequence.segments.push_back(
            segment(std::min<index_t>(random.integer(200, 2000), most_keys)));
        break;
      default:
        break;
    }
    const index_t tails[] = {0, 1, queries, std::max<index_t>(0, queries - 2), queries + 11};
    sequence.tail = segment(std::min(one_of(tails), most_keys));
    budget -= queries * most_keys / 2;
    // Partitions do not decrease along a list, its tail included.
    std::stable_sort(
        sequence.segments.begin(), sequence.segments.end(),
        [](const segment_shape& a, const segment_shape& b) { return a.partition < b.partition; });
    if (!sequence.segments.empty() &&
        sequence.tail.partition < sequence.segments.back().partition) {
      sequence.tail.partition = sequence.segments.back().partition;
      sequence.tail.log_weight_scale = sequence.segments.back().log_weight_scale;
      sequence.tail.log_weight = sequence.segments.back().log_weight;
    }
    c.sequences.push_back(std::move(sequence));
  }
  c.query_tokens = token + random.integer(0, 2);
  return c;
}

}  // namespace blockattn_test

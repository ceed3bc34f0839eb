// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/attend_blocks.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/tile_shape.hpp>
#include <blockattn/kv/block_store.hpp>
#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>
#include <blockattn/rope/rotate.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/rope_variants.hpp"

using namespace blockattn_test;

namespace {

constexpr index_t heads = 4;
constexpr index_t kv_heads = 2;
constexpr index_t value_dim = 16;

std::vector<double> positions_from(double first, index_t count) {
  std::vector<double> positions;
  for (index_t i = 0; i < count; ++i) positions.push_back(first + static_cast<double>(i));
  return positions;
}

/// A block of keys before rotation, its values, and the rows of a prompt's final block.
struct block_and_queries {
  index_t keys;
  index_t queries;
  index_t dim;
  std::vector<float> raw_k;
  std::vector<float> raw_q;
  std::vector<float> v;

  block_and_queries(std::uint64_t seed, index_t block, index_t rows, index_t head_dim)
      : keys(block), queries(rows), dim(head_dim) {
    random_source random(seed);
    raw_k = random.normal_values<float>(keys * kv_heads * dim);
    raw_q = random.normal_values<float>(queries * heads * dim);
    v = random.normal_values<float>(keys * kv_heads * value_dim);
  }

  /// Keys rotated for positions first, first + 1, ..., rounded once to T: what a cache holds.
  template <class T>
  std::vector<T> keys_at(const rope& rotation, double first) const {
    std::vector<T> rotated(raw_k.size());
    rotate(rotation, token_major<const float>(raw_k.data(), keys, kv_heads, dim),
           token_major(rotated.data(), keys, kv_heads, dim), positions_from(first, keys));
    return rotated;
  }
  template <class T>
  std::vector<T> queries_at(const rope& rotation, double first) const {
    std::vector<T> rotated(raw_q.size());
    rotate(rotation, token_major<const float>(raw_q.data(), queries, heads, dim),
           token_major(rotated.data(), queries, heads, dim), positions_from(first, queries));
    return rotated;
  }
};

struct result {
  std::vector<float> o;
  std::vector<float> lse;
};

template <class T>
key_segment<T, float> segment_of(const block_and_queries& data,
                                 const std::vector<T>& k,
                                 double shift) {
  return {.k = token_major<const T>(k.data(), data.keys, kv_heads, data.dim),
          .v = token_major<const float>(data.v.data(), data.keys, kv_heads, value_dim),
          .query_shift = shift};
}

/// Attention of the rotated queries to one segment.
template <class T>
result attend(const block_and_queries& data,
              const rope& rotation,
              const std::vector<T>& q,
              const key_segment<T, float>& segment) {
  result out{std::vector<float>(static_cast<std::size_t>(data.queries * heads * value_dim)),
             std::vector<float>(static_cast<std::size_t>(data.queries * heads))};
  const std::vector<attend_sequence<T, float>> sequences = {
      {.queries = {0, data.queries}, .segments = {&segment, 1}}};
  cpu::attend_blocks<T, T, float, float>(
      {.q = token_major<const T>(q.data(), data.queries, heads, data.dim),
       .o = token_major(out.o.data(), data.queries, heads, value_dim),
       .lse = token_major_lse(out.lse.data(), data.queries, heads),
       .sequences = sequences},
      {.rope = &rotation});
  return out;
}

template <class T>
double largest_norm(const std::vector<T>& rows, index_t dim) {
  double largest = 0;
  for (std::size_t begin = 0; begin < rows.size(); begin += static_cast<std::size_t>(dim)) {
    double sum = 0;
    for (std::size_t t = begin; t < begin + static_cast<std::size_t>(dim); ++t) {
      const auto value = static_cast<double>(load_scalar(rows[t]));
      sum += value * value;
    }
    largest = std::max(largest, sum);
  }
  return std::sqrt(largest);
}

/// How far cached attention may be from recomputed attention, from arithmetic alone. Both meet the
/// same stored queries. With u = 2^-24, a rotation in fp32 moves a row by at most 5 u of its norm
/// (angles, products and sums are rounded), and there are three: the query's shift, and the keys'
/// rotations for either place. Storing keys in T rounds them once on either side, u_T of their
/// norm each. Two dot products add 3 u |q| |k| each (random walk, as in attend_oracle). A score
/// is then off by
///   delta = scale * |q| * |k| * (15 u + 6 u + 2 u_T),
/// a weight by the factor exp(+-2 delta), and the output by (exp(2 delta) - 1) max |v| and a few u.
template <class T>
void check_equal(const block_and_queries& data,
                 const std::vector<T>& q,
                 const std::vector<T>& k,
                 const result& cached,
                 const result& recomputed) {
  constexpr double u = 0x1p-24;
  const double stored = format_of<T> == storage_format::fp32   ? 0
                        : format_of<T> == storage_format::bf16 ? 0x1p-8
                                                               : 0x1p-11;
  const double delta = largest_norm(q, data.dim) * largest_norm(k, data.dim) /
                       std::sqrt(static_cast<double>(data.dim)) * (21 * u + 2 * stored);
  double largest_value = 0;
  for (const float value : data.v) {
    largest_value = std::max(largest_value, static_cast<double>(std::abs(value)));
  }
  double o_error = 0;
  double mean = 0;
  for (std::size_t i = 0; i < cached.o.size(); ++i) {
    const double error = std::abs(static_cast<double>(cached.o[i] - recomputed.o[i]));
    if (!(error <= o_error)) o_error = error;
    mean += error / static_cast<double>(cached.o.size());
  }
  double lse_error = 0;
  for (std::size_t i = 0; i < cached.lse.size(); ++i) {
    const double error = std::abs(static_cast<double>(cached.lse[i] - recomputed.lse[i]));
    if (!(error <= lse_error)) lse_error = error;
  }
  const double bound = (std::expm1(2 * delta) + 16 * u) * largest_value;
  CHECK(o_error <= bound);
  // Roundings have no common sign: on average they must cancel.
  CHECK(mean <= bound / 16);
  CHECK(lse_error <= delta + 32 * u);
}

template <class T>
void check_variants(std::uint64_t default_seed) {
  const std::uint64_t seed = test_seed(default_seed);
  for (const named_rope& variant : rope_variants()) {
    const index_t dim = variant.rotation.head_dim();
    for (const index_t queries :
         {1, 20}) {  // queries turned once; more rows than keys: keys turned
      const block_and_queries data(seed, 15, queries, dim);
      const auto cached_keys = data.keys_at<T>(variant.rotation, 0);
      for (const double offset : {0.0, 1.0, 37.0, 4096.0, 12.25, -3.0, 16777217.0}) {
        CAPTURE(seed, variant.name, queries, offset);
        const auto q = data.queries_at<T>(variant.rotation, offset + 15);
        const auto moved_keys = data.keys_at<T>(variant.rotation, offset);
        const result cached =
            attend(data, variant.rotation, q, segment_of(data, cached_keys, -offset));
        const result recomputed =
            attend(data, variant.rotation, q, segment_of(data, moved_keys, 0));
        check_equal(data, q, moved_keys, cached, recomputed);
      }
    }
  }
}

}  // namespace

TEST_CASE("cached attention equals recomputation for every rope variant, fp32", "[cached]") {
  check_variants<float>(301);
}

TEST_CASE("cached attention equals recomputation for every rope variant, bf16", "[cached]") {
  check_variants<bfloat16>(302);
}

TEST_CASE("cached attention equals recomputation for every rope variant, fp16", "[cached]") {
  check_variants<float16>(303);
}

TEST_CASE("one cached block serves two prompts at two offsets at once", "[cached]") {
  const std::uint64_t seed = test_seed(304);
  CAPTURE(seed);
  constexpr index_t dim = 32;
  const rope rotation({.head_dim = dim, .theta = 1e5});
  const block_and_queries data(seed, 40, 6, dim);
  const std::vector<std::int32_t> ids(40, 7);
  const kv::block_key key({.tokens = ids, .model_fingerprint = "toy", .ropes = {&rotation, 1}});
  kv::block_store store({.byte_budget = 1 << 20});
  auto draft = store.begin_insert(
      key,
      {.layers = 1, .kv_heads = kv_heads, .tokens = 40, .head_dim = dim, .value_dim = value_dim});
  REQUIRE(draft);
  rotate(rotation, token_major<const float>(data.raw_k.data(), 40, kv_heads, dim),
         draft.k<float>(0), positions_from(0, 40));
  for (index_t token = 0; token < 40; ++token) {
    for (index_t head = 0; head < kv_heads; ++head) {
      std::copy_n(data.v.data() + (token * kv_heads + head) * value_dim, value_dim,
                  draft.v<float>(0).row(token, head));
    }
  }
  REQUIRE(store.commit(std::move(draft)));

  const std::array<double, 2> offsets = {17, 5000};
  std::array<std::vector<float>, 2> q;
  std::array<std::vector<float>, 2> moved_keys;
  std::array<result, 2> recomputed;
  for (std::size_t p = 0; p < 2; ++p) {
    q[p] = data.queries_at<float>(rotation, offsets[p] + 40);
    moved_keys[p] = data.keys_at<float>(rotation, offsets[p]);
    recomputed[p] = attend(data, rotation, q[p], segment_of(data, moved_keys[p], 0));
  }

  // In one call: two sequences whose segments are the same memory under two shifts.
  std::vector<float> both = q[0];
  both.insert(both.end(), q[1].begin(), q[1].end());
  const kv::cached_block block = store.find(key);
  REQUIRE(block);
  const std::array<key_segment<>, 2> segments = {block.segment(0, offsets[0]),
                                                 block.segment(0, offsets[1])};
  CHECK(segments[0].k.data == segments[1].k.data);
  const std::vector<attend_sequence<>> sequences = {
      {.queries = {0, 6}, .segments = {&segments[0], 1}},
      {.queries = {6, 12}, .segments = {&segments[1], 1}}};
  result joint{std::vector<float>(2 * recomputed[0].o.size()),
               std::vector<float>(2 * recomputed[0].lse.size())};
  cpu::attend_blocks<float>({.q = token_major<const float>(both.data(), 12, heads, dim),
                             .o = token_major(joint.o.data(), 12, heads, value_dim),
                             .lse = token_major_lse(joint.lse.data(), 12, heads),
                             .sequences = sequences},
                            {.rope = &rotation});
  for (std::size_t p = 0; p < 2; ++p) {
    CAPTURE(p);
    const auto part = [&](const std::vector<float>& x) {
      const auto half = static_cast<std::ptrdiff_t>(x.size() / 2);
      const auto begin = x.begin() + static_cast<std::ptrdiff_t>(p) * half;
      return std::vector<float>(begin, begin + half);
    };
    check_equal(data, q[p], moved_keys[p], {part(joint.o), part(joint.lse)}, recomputed[p]);
  }

  // From two threads, each prompt with its own handle in calls of its own.
  std::array<result, 2> alone;
  for (std::size_t p = 0; p < 2; ++p) alone[p] = attend(data, rotation, q[p], segments[p]);
  std::array<bool, 2> same = {true, true};
  std::vector<std::thread> threads;
  for (std::size_t p = 0; p < 2; ++p) {
    threads.emplace_back([&, p] {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const kv::cached_block own = store.find(key);
        const result again = attend(data, rotation, q[p], own.segment(0, offsets[p]));
        if (again.o != alone[p].o || again.lse != alone[p].lse) same[p] = false;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(same[0]);
  CHECK(same[1]);
  // The keys have not moved: as rotated for positions 0, 1, ... they still are.
  const auto at_origin = data.keys_at<float>(rotation, 0);
  for (index_t token = 0; token < 40; ++token) {
    for (index_t head = 0; head < kv_heads; ++head) {
      const float* const row = block.k<float>(0).row(token, head);
      CHECK(std::equal(row, row + dim, at_origin.data() + (token * kv_heads + head) * dim));
    }
  }
}

namespace {

/// A small transformer in fp64: x += Wo attention(Wq x, Wk x, Wv x), x += tanh(W1 x).
class toy_model {
 public:
  static constexpr index_t layers = 3;
  static constexpr index_t width = 16;
  static constexpr index_t dim = 8;

  using rows = std::vector<double>;  ///< (tokens, anything)
  struct layer_cache {
    rows k;  ///< rotated
    rows v;
  };

  toy_model(std::uint64_t seed, const rope& rotation) : random_(seed), rotation_(&rotation) {
    for (index_t layer = 0; layer < layers; ++layer) {
      weights_.push_back({matrix(width, heads * dim), matrix(width, kv_heads * dim),
                          matrix(width, kv_heads * dim), matrix(heads * dim, width),
                          matrix(width, width)});
    }
  }

  rows embed(index_t tokens) { return random_.normal_values<double>(tokens * width); }

  /// Runs all layers on x at positions first, first + 1, ...; `attention(layer, q, k, v, o)` sees
  /// the rotated tensors.
  template <class Attention>
  rows run(rows x, double first, const Attention& attention) const {
    const index_t tokens = static_cast<index_t>(x.size()) / width;
    const std::vector<double> positions = positions_from(first, tokens);
    for (index_t layer = 0; layer < layers; ++layer) {
      const auto& w = weights_[static_cast<std::size_t>(layer)];
      rows q = times(x, w[0], width);
      rows k = times(x, w[1], width);
      const rows v = times(x, w[2], width);
      rotate(*rotation_, token_major(q.data(), tokens, heads, dim), positions);
      rotate(*rotation_, token_major(k.data(), tokens, kv_heads, dim), positions);
      rows o(q.size());
      attention(layer, q, k, v, o);
      add(x, times(o, w[3], heads * dim));
      rows hidden = times(x, w[4], width);
      for (double& value : hidden) value = std::tanh(value);
      add(x, hidden);
    }
    return x;
  }

  /// Attention inside one plan, for all layers.
  rows run_masked(const rows& x, const attention_mask& mask) const {
    return run(x, 0, [&](index_t, const rows& q, const rows& k, const rows& v, rows& o) {
      forward(mask, q, k, v, o);
    });
  }

  /// Encodes a block alone at positions 0, 1, ...: what a store keeps.
  std::vector<layer_cache> encode(const rows& x) const {
    std::vector<layer_cache> cache;
    const auto mask = causal_mask(static_cast<index_t>(x.size()) / width);
    run(x, 0, [&](index_t, const rows& q, const rows& k, const rows& v, rows& o) {
      cache.push_back({k, v});
      forward(mask, q, k, v, o);
    });
    return cache;
  }

  /// The final block over cached blocks, in the order given.
  rows run_cached(const rows& x, const std::vector<const std::vector<layer_cache>*>& blocks) const {
    double length = 0;
    for (const auto* block : blocks) length += static_cast<double>(tokens_of(block->front()));
    const index_t tokens = static_cast<index_t>(x.size()) / width;
    return run(x, length, [&](index_t layer, const rows& q, const rows& k, const rows& v, rows& o) {
      std::vector<key_segment<double>> segments;
      double offset = 0;
      for (const auto* block : blocks) {
        const layer_cache& cache = (*block)[static_cast<std::size_t>(layer)];
        segments.push_back(segment(cache, -offset));
        offset += static_cast<double>(tokens_of(cache));
      }
      const layer_cache own{k, v};
      const std::vector<attend_sequence<double>> sequences = {
          {.queries = {0, tokens}, .segments = segments, .tail = segment(own, 0)}};
      cpu::attend_blocks<double>({.q = token_major<const double>(q.data(), tokens, heads, dim),
                                  .o = token_major(o.data(), tokens, heads, dim),
                                  .sequences = sequences},
                                 {.rope = rotation_});
    });
  }

 private:
  rows matrix(index_t in, index_t out) {
    rows values = random_.normal_values<double>(in * out);
    for (double& value : values) value /= std::sqrt(static_cast<double>(in));
    return values;
  }
  static rows times(const rows& x, const rows& w, index_t in) {
    const auto inner = static_cast<std::size_t>(in);
    const std::size_t out = w.size() / inner;
    rows y(x.size() / inner * out);
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t j = 0; j < out; ++j) y[i / inner * out + j] += x[i] * w[i % inner * out + j];
    }
    return y;
  }
  static void add(rows& x, const rows& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  static index_t tokens_of(const layer_cache& cache) {
    return static_cast<index_t>(cache.k.size()) / (kv_heads * dim);
  }
  static key_segment<double> segment(const layer_cache& cache, double shift) {
    const index_t tokens = tokens_of(cache);
    return {.k = token_major<const double>(cache.k.data(), tokens, kv_heads, dim),
            .v = token_major<const double>(cache.v.data(), tokens, kv_heads, dim),
            .query_shift = shift};
  }
  static void forward(
      const attention_mask& mask, const rows& q, const rows& k, const rows& v, rows& o) {
    const index_t tokens = mask.query_tokens();
    const auto plan = make_tile_plan(mask, cpu::tile_shape_for<double>(dim));
    cpu::forward<double>({.q = token_major<const double>(q.data(), tokens, heads, dim),
                          .k = token_major<const double>(k.data(), tokens, kv_heads, dim),
                          .v = token_major<const double>(v.data(), tokens, kv_heads, dim),
                          .o = token_major(o.data(), tokens, heads, dim)},
                         plan);
  }

  random_source random_;
  const rope* rotation_;
  std::vector<std::array<rows, 5>> weights_;
};

}  // namespace

// fp64 leaves 1e-15 in each layer; sums of 16 random terms and tanh amplify it by less than 10 per
// layer. A wrong shift, mask or cache changes the output by about 1.
TEST_CASE("cached blocks equal one masked prefill through all layers, in any order", "[cached]") {
  const std::uint64_t seed = test_seed(305);
  CAPTURE(seed);
  const rope rotation({.head_dim = toy_model::dim, .theta = 100});
  toy_model model(seed, rotation);
  const std::array<index_t, 3> lengths = {7, 1, 12};
  std::array<toy_model::rows, 3> documents;
  std::array<std::vector<toy_model::layer_cache>, 3> caches;
  for (std::size_t b = 0; b < 3; ++b) {
    documents[b] = model.embed(lengths[b]);
    caches[b] = model.encode(documents[b]);
  }
  const auto question = model.embed(5);
  const std::vector<std::array<std::size_t, 3>> orders = {{0, 1, 2}, {2, 0, 1}, {1, 2, 0}};
  for (const auto& order : orders) {
    toy_model::rows prompt;
    std::vector<const std::vector<toy_model::layer_cache>*> blocks;
    std::vector<index_t> block_lengths;
    for (const std::size_t b : order) {
      prompt.insert(prompt.end(), documents[b].begin(), documents[b].end());
      blocks.push_back(&caches[b]);
      block_lengths.push_back(lengths[b]);
    }
    prompt.insert(prompt.end(), question.begin(), question.end());
    block_lengths.push_back(5);
    const auto layout = with_final_block(block_layout::from_lengths(block_lengths));
    const auto masked = model.run_masked(prompt, block_attention_mask(layout));
    const auto cached = model.run_cached(question, blocks);
    const std::size_t final_rows = masked.size() - question.size();
    double largest = 0;
    for (std::size_t i = 0; i < cached.size(); ++i) {
      const double difference = std::abs(cached[i] - masked[final_rows + i]);
      if (!(difference <= largest)) largest = difference;
    }
    CHECK(largest <= 1e-11);
  }
}

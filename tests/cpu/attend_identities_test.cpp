// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/attend_blocks.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/tile_shape.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

constexpr index_t heads = 6;
constexpr index_t kv_heads = 2;
constexpr index_t dim = 64;
constexpr index_t value_dim = 40;

/// Two ways to the same rows differ by the roundings of both: scores are below 6, so a weight is
/// off by 2e-6 of itself at most, and values are below 6.
constexpr double tolerance = 2e-5;

/// A sequence: `context` keys that all queries see, then `queries` tokens that see themselves
/// causally. Queries, keys and values lie token-major in one buffer each.
struct prompt {
  index_t context;
  index_t queries;
  std::vector<float> q, k, v;

  prompt(std::uint64_t seed, index_t context_keys, index_t query_tokens)
      : context(context_keys), queries(query_tokens) {
    random_source random(seed);
    q = random.normal_values<float>(queries * heads * dim);
    k = random.normal_values<float>((context + queries) * kv_heads * dim);
    v = random.normal_values<float>((context + queries) * kv_heads * value_dim);
  }
  heads_view<const float> queries_view() const {
    return token_major<const float>(q.data(), queries, heads, dim);
  }
  key_segment<> keys(index_t begin, index_t count) const {
    const index_t all = context + queries;
    return {.k = token_slice(token_major<const float>(k.data(), all, kv_heads, dim), begin, count),
            .v = token_slice(token_major<const float>(v.data(), all, kv_heads, value_dim), begin,
                             count)};
  }
};

struct result {
  std::vector<float> o;
  std::vector<float> lse;

  explicit result(index_t queries)
      : o(static_cast<std::size_t>(queries * heads * value_dim), std::nanf("")),
        lse(static_cast<std::size_t>(queries * heads), std::nanf("")) {}
};

result attend(const prompt& p, const std::vector<attend_sequence<>>& sequences) {
  result out(p.queries);
  cpu::attend_blocks<float>({.q = p.queries_view(),
                             .o = token_major(out.o.data(), p.queries, heads, value_dim),
                             .lse = token_major_lse(out.lse.data(), p.queries, heads),
                             .sequences = sequences});
  return out;
}

/// The whole context in one segment.
result attend_contiguous(const prompt& p) {
  const std::vector<key_segment<>> context = {p.keys(0, p.context)};
  return attend(
      p, {{.queries = {0, p.queries}, .segments = context, .tail = p.keys(p.context, p.queries)}});
}

double largest_difference(const result& a, const result& b) {
  double largest = 0;
  const auto compare = [&](const std::vector<float>& x, const std::vector<float>& y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double difference = std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i]));
      if (!(difference <= largest)) largest = difference;
    }
  };
  compare(a.o, b.o);
  compare(a.lse, b.lse);
  return largest;
}

}  // namespace

TEST_CASE("attend_blocks equals cpu::forward on the concatenated keys", "[attend_blocks]") {
  const std::uint64_t seed = test_seed(201);
  CAPTURE(seed);
  for (const index_t queries : {1, 3, 50}) {
    for (const index_t context : {0, 1, 300, 1500}) {
      CAPTURE(queries, context);
      const prompt p(seed, context, queries);
      const index_t all = context + queries;
      const auto plan = make_tile_plan(causal_mask(queries, all), cpu::tile_shape_for<float>(dim));
      result expected(queries);
      cpu::forward<float>({.q = p.queries_view(),
                           .k = p.keys(0, all).k,
                           .v = p.keys(0, all).v,
                           .o = token_major(expected.o.data(), queries, heads, value_dim),
                           .lse = token_major_lse(expected.lse.data(), queries, heads)},
                          plan);
      CHECK(largest_difference(attend_contiguous(p), expected) <= tolerance);
    }
  }
}

TEST_CASE("pages, splits and an order of segments change nothing", "[attend_blocks]") {
  const std::uint64_t seed = test_seed(202);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t queries : {1, 2, 40}) {
    const prompt p(seed, 700, queries);
    CAPTURE(queries);
    const result expected = attend_contiguous(p);
    const attend_sequence<> rest{.queries = {0, queries}, .tail = p.keys(p.context, queries)};
    const auto with_segments = [&](const std::vector<key_segment<>>& segments) {
      attend_sequence<> sequence = rest;
      sequence.segments = segments;
      return attend(p, {sequence});
    };
    // Pages of 16 that lie anywhere in memory, in any order.
    std::vector<index_t> slots;
    for (index_t slot = 0; slot < ceil_divide(p.context, 16); ++slot) slots.push_back(slot);
    std::shuffle(slots.begin(), slots.end(), random.engine());
    std::vector<std::vector<float>> memory;
    std::vector<key_segment<>> pages;
    memory.reserve(2 * slots.size());
    for (const index_t slot : slots) {
      const index_t count = std::min<index_t>(16, p.context - slot * 16);
      const auto page = p.keys(slot * 16, count);
      memory.emplace_back(page.k.data, page.k.data + count * kv_heads * dim);
      const float* const k = memory.back().data();
      memory.emplace_back(page.v.data, page.v.data + count * kv_heads * value_dim);
      pages.push_back(
          {.k = token_major<const float>(k, count, kv_heads, dim),
           .v = token_major<const float>(memory.back().data(), count, kv_heads, value_dim)});
    }
    CHECK(largest_difference(with_segments(pages), expected) <= tolerance);
    // Random cuts, in partitions or not: plain weights make them one softmax.
    for (int round = 0; round < 5; ++round) {
      std::vector<key_segment<>> pieces;
      for (index_t at = 0; at < p.context;) {
        const index_t count = std::min(p.context - at, random.integer(0, 200));
        pieces.push_back(p.keys(at, count));
        if (round % 2 == 1) pieces.back().partition = 3 * at / p.context - 2;
        at += count;
      }
      CHECK(largest_difference(with_segments(pieces), expected) <= tolerance);
    }
  }
}

TEST_CASE("prefill of the final block equals token-by-token decode", "[attend_blocks]") {
  const std::uint64_t seed = test_seed(203);
  CAPTURE(seed);
  const prompt p(seed, 300, 30);
  const result prefill = attend_contiguous(p);
  const std::vector<key_segment<>> context = {p.keys(0, p.context)};
  result decoded(p.queries);
  for (index_t token = 0; token < p.queries; ++token) {
    // The tail has grown by this token's key.
    const std::vector<attend_sequence<>> step = {
        {.queries = {token, token + 1}, .segments = context, .tail = p.keys(p.context, token + 1)}};
    const result out = attend(p, step);
    const auto row = static_cast<std::size_t>(token * heads);
    std::copy_n(out.o.begin() + static_cast<std::ptrdiff_t>(row * value_dim), heads * value_dim,
                decoded.o.begin() + static_cast<std::ptrdiff_t>(row * value_dim));
    std::copy_n(out.lse.begin() + static_cast<std::ptrdiff_t>(row), heads,
                decoded.lse.begin() + static_cast<std::ptrdiff_t>(row));
  }
  CHECK(largest_difference(prefill, decoded) <= tolerance);
}

TEST_CASE("sequences in one call equal calls of their own", "[attend_blocks]") {
  const std::uint64_t seed = test_seed(204);
  CAPTURE(seed);
  const prompt p(seed, 600, 24);
  const std::vector<key_segment<>> shared = {p.keys(0, 150)};
  const std::vector<key_segment<>> longer = {p.keys(0, 150), p.keys(200, 400)};
  const std::vector<attend_sequence<>> sequences = {
      {.queries = {0, 1}, .segments = longer},
      {.queries = {1, 20}, .segments = shared, .tail = p.keys(600, 19)},
      {.queries = {20, 24}, .segments = longer, .tail = p.keys(620, 2)}};
  const result together = attend(p, sequences);
  result apart(p.queries);
  for (const auto& sequence : sequences) {
    const result one = attend(p, {sequence});
    for (index_t i = 0; i < p.queries * heads; ++i) {
      if (!sequence.queries.contains(i / heads)) continue;
      const auto row = static_cast<std::size_t>(i);
      apart.lse[row] = one.lse[row];
      std::copy_n(one.o.begin() + i * value_dim, value_dim, apart.o.begin() + i * value_dim);
    }
  }
  CHECK(largest_difference(together, apart) <= tolerance);
}

TEST_CASE("GQA equals MHA with repeated keys and values", "[attend_blocks]") {
  const std::uint64_t seed = test_seed(205);
  CAPTURE(seed);
  const prompt p(seed, 77, 5);
  const result grouped = attend_contiguous(p);
  const index_t all = p.context + p.queries;
  std::vector<float> k, v;
  for (index_t token = 0; token < all; ++token) {
    const key_segment<> one = p.keys(token, 1);
    for (index_t head = 0; head < heads; ++head) {
      const index_t kv_head = head / (heads / kv_heads);
      k.insert(k.end(), one.k.row(0, kv_head), one.k.row(0, kv_head) + dim);
      v.insert(v.end(), one.v.row(0, kv_head), one.v.row(0, kv_head) + value_dim);
    }
  }
  const auto repeated = [&](index_t begin, index_t count) {
    return key_segment<>{
        .k = token_slice(token_major<const float>(k.data(), all, heads, dim), begin, count),
        .v = token_slice(token_major<const float>(v.data(), all, heads, value_dim), begin, count)};
  };
  const std::vector<key_segment<>> context = {repeated(0, p.context)};
  const result separate = attend(
      p,
      {{.queries = {0, p.queries}, .segments = context, .tail = repeated(p.context, p.queries)}});
  CHECK(largest_difference(grouped, separate) <= tolerance);
}

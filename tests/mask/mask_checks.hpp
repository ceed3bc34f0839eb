// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/dense_mask.hpp>
#include <initializer_list>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace blockattn_test {

/// The picture of a predicate, pair by pair.
template <class Visible>
std::string picture_of(index_t query_tokens, index_t key_tokens, const Visible& visible) {
  std::string text;
  for (index_t query = 0; query < query_tokens; ++query) {
    for (index_t key = 0; key < key_tokens; ++key) text += visible(query, key) ? 'x' : '.';
    text += '\n';
  }
  return text;
}

/// The laws that every mask obeys, checked with `contains` alone: slices lie inside the axes, are
/// sorted, trimmed and disjoint, and count their pairs right; transposing twice changes nothing.
inline void check_laws(const attention_mask& mask) {
  const index_t queries = mask.query_tokens();
  const index_t keys = mask.key_tokens();
  std::vector<int> seen(static_cast<std::size_t>(queries * keys), 0);
  index_t pairs = 0;
  for (std::size_t i = 0; i < mask.slices().size(); ++i) {
    const slice& s = mask.slices()[i];
    REQUIRE((0 <= s.queries.begin && s.queries.begin < s.queries.end && s.queries.end <= queries));
    REQUIRE((0 <= s.keys.begin && s.keys.begin < s.keys.end && s.keys.end <= keys));
    REQUIRE(trimmed(s) == s);
    if (i > 0) {
      const slice& before = mask.slices()[i - 1];
      REQUIRE((before.queries.begin < s.queries.begin ||
               (before.queries.begin == s.queries.begin && before.keys.begin <= s.keys.begin)));
    }
    for (index_t query = 0; query < queries; ++query) {
      for (index_t key = 0; key < keys; ++key) {
        if (!s.contains(query, key)) continue;
        ++seen[static_cast<std::size_t>(query * keys + key)];
        ++pairs;
      }
    }
  }
  REQUIRE(std::count_if(seen.begin(), seen.end(), [](int count) { return count > 1; }) == 0);
  REQUIRE(visible_pairs(mask) == pairs);
  const std::vector<std::uint8_t> dense = to_dense(mask);
  REQUIRE(std::equal(dense.begin(), dense.end(), seen.begin(), seen.end()));

  const attention_mask flipped = transposed(mask);
  REQUIRE(visible_pairs(flipped) == pairs);
  REQUIRE(picture(flipped) == picture_of(keys, queries, [&](index_t key, index_t query) {
            return dense[static_cast<std::size_t>(query * keys + key)] != 0;
          }));
  REQUIRE(transposed(flipped).slices() == mask.slices());
}

/// The mask obeys the laws and holds exactly the pairs of the predicate.
template <class Visible>
void check_mask(const attention_mask& mask,
                index_t query_tokens,
                index_t key_tokens,
                const Visible& visible) {
  REQUIRE(mask.query_tokens() == query_tokens);
  REQUIRE(mask.key_tokens() == key_tokens);
  check_laws(mask);
  REQUIRE(picture(mask) == picture_of(query_tokens, key_tokens, visible));
}

/// A random slice of an axis pair; narrow bands, wide ones and none.
inline slice random_slice(random_source& random, index_t query_tokens, index_t key_tokens) {
  const auto range = [&](index_t tokens) {
    const index_t a = random.integer(0, tokens);
    const index_t b = random.integer(0, tokens);
    return index_range{std::min(a, b), std::max(a, b)};
  };
  slice s = {.queries = range(query_tokens), .keys = range(key_tokens)};
  if (random.chance(0.6)) s.lower = random.integer(-query_tokens - 1, key_tokens + 1);
  if (random.chance(0.6)) s.upper = random.integer(-query_tokens - 1, key_tokens + 1);
  return s;
}

/// Disjoint random slices: each one is kept if it meets none of those before.
inline attention_mask random_mask(random_source& random, index_t query_tokens, index_t key_tokens) {
  std::vector<slice> kept;
  const index_t attempts = random.integer(0, 12);
  for (index_t i = 0; i < attempts; ++i) {
    const slice s = random_slice(random, query_tokens, key_tokens);
    const bool alone = std::none_of(kept.begin(), kept.end(), [&](const slice& other) {
      return visible_pairs(intersect(s, other)) > 0;
    });
    if (alone) kept.push_back(s);
  }
  return attention_mask::from_disjoint_slices(query_tokens, key_tokens, kept);
}

}  // namespace blockattn_test

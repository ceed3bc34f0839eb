// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/forward_identities.hpp"

/// \file
/// Identities of rows computed in another call: packed, alone, later or again (SEMANTICS.md,
/// section 5, numbers 10, 12 and 13).

namespace blockattn_test {

/// Identity 12: sequences packed on one axis compute what each computes alone.
template <class T, class Backend>
void check_packing(const Backend& backend, random_source& random) {
  const block_layout packed = random_block_layout(random, 20);
  const plain_inputs<T> in = random_inputs<T>(random, packed.tokens(), packed.tokens());
  const attention_mask mask = block_attention_mask(packed);
  const plain_outputs<T> together = run_forward(backend, in, mask);
  for (index_t s = 0; s < packed.sequences(); ++s) {
    const index_range range = packed.sequence_tokens(s);
    const std::vector<index_t> tokens = indices(range);
    const plain_outputs<T> alone = run_forward(backend, in.with_queries(tokens).with_keys(tokens),
                                               gather_mask(mask, tokens, tokens));
    for (index_t i = 0; i < range.size(); ++i) {
      CAPTURE(s, i);
      CHECK(row_distance(alone, i, together, range.begin + i) <= identity_tolerance<T>);
    }
  }
}

/// Identity 12: the final block computed at once is the final block computed token by token.
template <class T, class Backend>
void check_decoding(const Backend& backend, random_source& random) {
  std::vector<index_t> lengths = random_sequence(random);
  lengths.push_back(random.integer(1, 9));
  const block_layout layout = layout_of(lengths);
  const index_t n = layout.tokens();
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_outputs<T> prefill = run_forward(backend, in, block_attention_mask(layout));
  for (const index_t i : indices(layout.block(layout.blocks() - 1))) {
    const plain_outputs<T> decoded = run_forward(
        backend, in.with_queries({i}).with_keys(indices({0, i + 1})), full_mask(1, i + 1));
    CAPTURE(n, i);
    CHECK(row_distance(decoded, 0, prefill, i) <= identity_tolerance<T>);
  }
}

/// Identities 12 and 13: any rows of a call may be computed by another call, whose mask compares
/// token indices. The bottom-right triangle over the picked rows, a known bug, lets them see the
/// future.
template <class T, class Backend>
void check_gathered_queries(const Backend& backend, random_source& random) {
  const index_t n = random.integer(20, 80);
  const index_t cut = random.integer(0, n);
  const bool causal = random.chance(0.5);
  const attention_mask mask =
      causal ? causal_mask(n) : block_attention_mask(layout_of({cut / 2, cut - cut / 2, n - cut}));
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_outputs<T> all = run_forward(backend, in, mask);
  std::vector<index_t> rows = random_tokens(random, n - 10, random.real(0.1, 0.9));
  rows.insert(rows.begin(), 0);
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  const plain_inputs<T> picked = in.with_queries(rows);
  const plain_outputs<T> again = run_forward(backend, picked, gather_queries(mask, rows));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    CAPTURE(n, causal, cut, r, rows[r]);
    CHECK(row_distance(again, static_cast<index_t>(r), all, rows[r]) <= identity_tolerance<T>);
  }
  // The comparison would notice: row 0 sees one key, in the triangle at least 10 more.
  const plain_outputs<T> triangle = run_forward(backend, picked, causal_mask(std::ssize(rows), n));
  CHECK(row_distance(triangle, 0, all, 0) > 0.01);

  // Keys that none of the rows sees need not be there.
  const std::vector<index_t> keys = indices({0, rows.back() + 1});
  const plain_outputs<T> fewer =
      run_forward(backend, picked.with_keys(keys), gather_mask(mask, rows, keys));
  CHECK(row_distance(fewer, again) <= identity_tolerance<T>);
}

/// Identity 10: the two streams of block diffusion (BD3-LM, arXiv 2503.09573) over n tokens in
/// blocks of `block` tokens, noised half first.
inline attention_mask dual_stream_mask(index_t n, index_t block) {
  const index_t blocks = ceil_divide(n, block);
  std::vector<index_t> lengths;
  for (index_t b = 0; b < 2 * blocks; ++b) {
    lengths.push_back(std::min(block, n - b % blocks * block));
  }
  std::vector<block_visibility> matrix;
  for (index_t q = 0; q < 2 * blocks; ++q) {
    for (index_t k = 0; k < 2 * blocks; ++k) {
      const bool clean_query = q >= blocks;
      const bool clean_key = k >= blocks;
      const index_t age = q % blocks - k % blocks;
      const bool sees = (age == 0 && clean_query == clean_key) || (age > 0 && clean_key);
      matrix.push_back(sees ? block_visibility::full : block_visibility::hidden);
    }
  }
  return block_visibility_mask(layout_of(lengths), matrix);
}

template <class T, class Backend>
void check_dual_stream(const Backend& backend, random_source& random) {
  const index_t n = random.integer(1, 40);
  const index_t block = random.integer(1, n);
  CAPTURE(n, block);
  const plain_inputs<T> in = random_inputs<T>(random, 2 * n, 2 * n);
  const plain_outputs<T> out = run_forward(backend, in, dual_stream_mask(n, block));
  for (index_t begin = 0; begin < n; begin += block) {
    // The noised block alone, over the clean blocks before it and itself.
    const index_range own = {begin, std::min(n, begin + block)};
    std::vector<index_t> keys = indices({n, n + begin});
    for (const index_t token : indices(own)) keys.push_back(token);
    const plain_outputs<T> alone =
        run_forward(backend, in.with_queries(indices(own)).with_keys(keys),
                    full_mask(own.size(), std::ssize(keys)));
    for (index_t i = 0; i < own.size(); ++i) {
      CHECK(row_distance(alone, i, out, begin + i) <= identity_tolerance<T>);
    }
  }
  // Clean rows do not know the noised half.
  plain_inputs<T> other_noise = random_inputs<T>(random, 2 * n, 2 * n);
  const auto keep_clean = [](const std::vector<T>& from, std::vector<T>& to) {
    std::copy(from.begin() + std::ssize(from) / 2, from.end(), to.begin() + std::ssize(to) / 2);
  };
  keep_clean(in.q, other_noise.q);
  keep_clean(in.k, other_noise.k);
  keep_clean(in.v, other_noise.v);
  const plain_outputs<T> noised = run_forward(backend, other_noise, dual_stream_mask(n, block));
  for (index_t i = n; i < 2 * n; ++i) CHECK(same_bits(noised, i, out, i));

  // Blocks of one token: the clean half is causal. One block: the noised half sees itself whole.
  const std::vector<index_t> clean = indices({n, 2 * n});
  const std::vector<index_t> noise = indices({0, n});
  const plain_outputs<T> units = run_forward(backend, in, dual_stream_mask(n, 1));
  const plain_outputs<T> whole = run_forward(backend, in, dual_stream_mask(n, n));
  const plain_outputs<T> causal =
      run_forward(backend, in.with_queries(clean).with_keys(clean), causal_mask(n));
  const plain_outputs<T> full =
      run_forward(backend, in.with_queries(noise).with_keys(noise), full_mask(n, n));
  for (index_t i = 0; i < n; ++i) {
    CHECK(row_distance(units, n + i, causal, i) <= identity_tolerance<T>);
    CHECK(row_distance(whole, i, full, i) <= identity_tolerance<T>);
  }
}

}  // namespace blockattn_test

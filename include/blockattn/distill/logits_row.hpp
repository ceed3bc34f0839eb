// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/simd_storage.hpp>
#include <cmath>
#include <limits>
#include <numbers>

/// \file
/// Exponential sums over one row of logits, chunk by chunk. A row is summed relative to the largest
/// logit so far, its *reference*; exponents are in base 2: 2^(scale (logit - reference)).

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Logits per chunk. Its terms are summed in the accumulator, 64 in a row for fp32 on AVX-512;
/// chunks are summed in fp64.
inline constexpr index_t logits_chunk = 1024;

/// The largest of count > 0 values, -inf at least.
template <class C, class Arch, class T>
inline C largest_of(const T* values, index_t count) noexcept {
  using v = vector<C, Arch>;
  constexpr index_t width = lanes<C, Arch>;
  C largest = -std::numeric_limits<C>::infinity();
  index_t i = 0;
  if (count >= 4 * width) {  // four at a time: one maximum waits for another
    v most[4];
    for (index_t l = 0; l < 4; ++l) most[l] = load_values<C, Arch>(values + l * width);
    for (i = 4 * width; i + 4 * width <= count; i += 4 * width) {
      for (index_t l = 0; l < 4; ++l)
        most[l] = xsimd::max(most[l], load_values<C, Arch>(values + i + l * width));
    }
    largest = detail::reduce_max<C, Arch>(
        xsimd::max(xsimd::max(most[0], most[1]), xsimd::max(most[2], most[3])));
  }
  for (; i < count; ++i) largest = std::max(largest, static_cast<C>(load_scalar(values[i])));
  return largest;
}

/// scale (values - reference) of up to `lanes` values; the lanes after `count` weigh nothing.
template <class C, class Arch, class T>
inline vector<C, Arch> exponents_of(const T* values, index_t count, C reference, C scale) noexcept {
  using v = vector<C, Arch>;
  if (count == lanes<C, Arch>) return (load_values<C, Arch>(values) - v(reference)) * v(scale);
  alignas(64) C exponents[lanes<C, Arch>];
  std::fill(exponents, exponents + lanes<C, Arch>, C(-2048));  // 2^-2048 is 0 in fp64 too
  for (index_t i = 0; i < count; ++i)
    exponents[i] = (static_cast<C>(load_scalar(values[i])) - reference) * scale;
  return v::load_aligned(exponents);
}

/// `count` accumulators; the lanes after them are 0.
template <class C, class Arch>
inline vector<C, Arch> load_first(const C* values, index_t count) noexcept {
  if (count == lanes<C, Arch>) return vector<C, Arch>::load_unaligned(values);
  alignas(64) C lane[lanes<C, Arch>] = {};
  std::copy_n(values, count, lane);
  return vector<C, Arch>::load_aligned(lane);
}

/// Stores the first `count` lanes.
template <class C, class Arch, class T>
inline void store_first(const vector<C, Arch>& values, index_t count, T* stored) noexcept {
  if (count == lanes<C, Arch>) return store_values<C, Arch>(values, stored);
  alignas(64) C lane[lanes<C, Arch>];
  values.store_aligned(lane);
  for (index_t i = 0; i < count; ++i) store_scalar(stored[i], lane[i]);
}

/// Calls body(i, lanes) for each whole vector of [0, count) and body(i, rest) for what is left.
template <class C, class Arch, class Body>
inline void for_each_vector(index_t count, const Body& body) noexcept {
  constexpr index_t width = lanes<C, Arch>;
  index_t i = 0;
  for (; i + width <= count; i += width) body(i, width);
  if (i < count) body(i, count - i);
}

/// Asks for the value at the same place of the next chunk: the passes over a chunk then find it in
/// cache. Addresses past the row are harmless: nothing is read.
template <class T>
inline void prefetch_next_chunk([[maybe_unused]] const T* value) noexcept {
#if defined(__GNUC__)
  __builtin_prefetch(value + logits_chunk);
#endif
}

/// sum of 2^(scale (logit - reference)) over the logits so far.
template <class C, class Arch>
struct row_sum {
  C reference = -std::numeric_limits<C>::infinity();
  double total = 0;

  /// Makes room for logits up to `largest`. Returns the log2 by which the terms so far shrink.
  double raise_reference(C largest, C scale) noexcept {
    if (!(largest > reference)) return 0;
    const double shift = total > 0 ? exponent(reference, largest, scale) : 0;
    total *= std::exp2(shift);
    reference = largest;
    return shift;
  }
  /// log2 of the softmax probability of a logit.
  double log2_probability(C logit, C scale) const noexcept {
    return exponent(logit, reference, scale) - std::log2(total);
  }
  static double exponent(C logit, C reference, C scale) noexcept {
    return (static_cast<double>(logit) - static_cast<double>(reference)) *
           static_cast<double>(scale);
  }
};

/// Terms of a row that were stored for the gradient: values[i] counts factors[i / logits_chunk]
/// times. The sum passes leave the chunk's reference in `factors`. No values: absent.
template <class C, class Arch>
struct stored_terms {
  C* values = nullptr;   ///< (vocabulary)
  C* factors = nullptr;  ///< (chunks)

  C at(index_t i) const noexcept {
    return values != nullptr ? factors[i / logits_chunk] * values[i] : C(0);
  }
  /// The terms from a chunk's begin on.
  stored_terms from(index_t begin) const noexcept {
    return values != nullptr ? stored_terms{values + begin, factors + begin / logits_chunk}
                             : stored_terms{};
  }
};

/// Adds up to logits_chunk values of a row to its sum, -inf as nothing. `store` begins at the
/// chunk.
template <class C, class Arch, class T>
inline void add_chunk(const T* values,
                      index_t count,
                      C scale,
                      row_sum<C, Arch>& sum,
                      const stored_terms<C, Arch>& store) noexcept {
  using v = vector<C, Arch>;
  sum.raise_reference(largest_of<C, Arch>(values, count), scale);
  if (store.values != nullptr) *store.factors = sum.reference;
  if (sum.reference == -std::numeric_limits<C>::infinity()) {  // -inf - -inf is no exponent
    if (store.values != nullptr) std::fill_n(store.values, count, C(0));
    return;
  }
  v chunk(C(0));
  for_each_vector<C, Arch>(count, [&](index_t i, index_t n) {
    prefetch_next_chunk(values + i);
    const v term =
        exp2_nonpositive<C, Arch>(exponents_of<C, Arch>(values + i, n, sum.reference, scale));
    chunk += term;
    if (store.values != nullptr) store_first<C, Arch>(term, n, store.values + i);
  });
  sum.total += static_cast<double>(detail::reduce_add<C, Arch>(chunk));
}

/// The sum over one row; `store` keeps the terms.
template <class C, class Arch, class T>
row_sum<C, Arch> sum_row(const T* row,
                         index_t vocabulary,
                         C scale,
                         const stored_terms<C, Arch>& store = {}) noexcept {
  row_sum<C, Arch> sum;
  for (index_t begin = 0; begin < vocabulary; begin += logits_chunk) {
    add_chunk<C, Arch>(row + begin, std::min(logits_chunk, vocabulary - begin), scale, sum,
                       store.from(begin));
  }
  return sum;
}

/// Turns the references that a sum pass left into factors: each term counts `factor` times its
/// probability.
template <class C, class Arch>
void set_factors(const stored_terms<C, Arch>& terms,
                 index_t vocabulary,
                 const row_sum<C, Arch>& sum,
                 C scale,
                 double factor) noexcept {
  for (index_t chunk = 0; chunk < ceil_divide(vocabulary, logits_chunk); ++chunk) {
    const double shift = sum.exponent(terms.factors[chunk], sum.reference, scale);
    // Without any term the references are -inf.
    terms.factors[chunk] =
        sum.total > 0 ? static_cast<C>(factor / sum.total * std::exp2(shift)) : C(0);
  }
}

/// -log softmax(row)[label], in nats. 1 pass.
template <class C, class Arch, class T>
double cross_entropy(const T* row, index_t vocabulary, index_t label) noexcept {
  constexpr auto scale = static_cast<C>(std::numbers::log2e);
  const auto logit = static_cast<C>(load_scalar(row[label]));
  return -std::numbers::ln2 *
         sum_row<C, Arch>(row, vocabulary, scale).log2_probability(logit, scale);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

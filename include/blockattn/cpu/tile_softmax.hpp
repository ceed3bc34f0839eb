// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/range.hpp>
#include <blockattn/cpu/micro_kernel.hpp>
#include <cmath>
#include <limits>
#include <numbers>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// From a product S = q.k to the base-2 logarithm of a weight: scale_log2 * S, or with softcap
/// first S <- tanh(cap_inner * S) and then scale_log2 * S. scale_log2 > 0: the sign of the scale,
/// or its being 0, goes into q.
template <class C>
struct score_transform {
  C scale_log2 = 1;
  C cap_inner = 0;  ///< |scale| / softcap; 0 = no softcap
  C q_sign = 1;     ///< -1, 0 or 1

  /// For the score score_scale * softcap(scale * S). Where |scale| / softcap is no normal number
  /// the cap bends nothing and is left out.
  static score_transform from(double scale, double softcap, double score_scale = 1) noexcept {
    const auto inner = static_cast<C>(softcap > 0 ? std::abs(scale) / softcap : 0);
    const bool capped = inner >= std::numeric_limits<C>::min();
    const double outer =
        std::numbers::log2e * std::abs(score_scale) * (capped ? softcap : std::abs(scale));
    const auto scale_log2 = static_cast<C>(outer);
    // 0 * -inf of a hidden column would be NaN: a factor of 0 is moved into q.
    const bool vanishes = scale_log2 < std::numeric_limits<C>::min();
    const C sign = (scale < 0) != (score_scale < 0) ? C(-1) : C(1);
    return {.scale_log2 = vanishes ? C(1) : scale_log2,
            .cap_inner = capped ? inner : C(0),
            .q_sign = vanishes ? C(0) : sign};
  }
};

template <class C, class Arch>
inline void cap_scores(C* s,
                       const index_range& columns,
                       const score_transform<C>& transform) noexcept {
  using v = vector<C, Arch>;
  for (index_t j = columns.begin; j < columns.end; j += lanes<C, Arch>) {
    xsimd::tanh(v::load_unaligned(s + j) * v(transform.cap_inner)).store_unaligned(s + j);
  }
}

/// Calls f(begin, end) for what lies between the sorted runs, and before and after them.
template <class F>
inline void for_each_gap(const index_range& columns,
                         std::span<const index_range> runs,
                         const F& f) noexcept {
  index_t at = columns.begin;
  for (const index_range& run : runs) {
    f(at, std::max(at, run.begin));
    at = run.end;
  }
  f(at, std::max(at, columns.end));
}

/// Sets the columns outside the sorted runs to -inf. Whatever stood there (NaN of a key that nobody
/// sees) is gone.
template <class C>
inline void hide_columns(C* s,
                         const index_range& columns,
                         std::span<const index_range> runs) noexcept {
  constexpr C hidden = -std::numeric_limits<C>::infinity();
  for_each_gap(columns, runs,
               [&](index_t begin, index_t end) { std::fill(s + begin, s + end, hidden); });
}

template <class C>
struct row_update {
  C row_max;  ///< new maximum, scaled, base 2
  C sum;      ///< of this tile's weights
  C rescale;  ///< of the state so far: 2^(old maximum - new maximum)
};

/// Writes the weights of one row: float and double in place, bf16 rounded two vectors at a time.
template <class Panel, class Arch>
struct weight_writer {
  template <class C>
  static void write(Panel* weights, index_t column, const vector<C, Arch>& w) noexcept {
    w.store_unaligned(weights + column);
  }
};
#if defined(__AVX512BF16__)
template <class Arch>
struct weight_writer<bf16_pair, Arch> {
  static void write(bf16_pair* weights, index_t column, const vector<float, Arch>& w) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + column / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(w)));
  }
};
#endif

/// The weights of a row that sees none of the columns: 0.
template <class Panel, class Arch, class C>
inline void clear_weights(const index_range& columns, Panel* weights) noexcept {
  for (index_t j = columns.begin; j < columns.end; j += lanes<C, Arch>)
    weight_writer<Panel, Arch>::write(weights, j, vector<C, Arch>(C(0)));
}

/// weights_j = 2^(scale * s_j - m) with m = max(row_max, max_j scale * s_j), for a row that sees at
/// least one column. `columns` is a multiple of the vector in both ends. Hidden columns (-inf) get
/// exactly 0. A NaN, or a score beyond the range of C, makes the row's sum NaN.
template <class Panel, class Arch, class C>
inline row_update<C> softmax_row(
    const C* s, const index_range& columns, C scale, C row_max, Panel* weights) noexcept {
  using v = vector<C, Arch>;
  constexpr index_t step = lanes<C, Arch>;
  constexpr C infinity = std::numeric_limits<C>::infinity();
  v largest[4] = {v(-infinity), v(-infinity), v(-infinity), v(-infinity)};
  index_t j = columns.begin;
  for (; j + 4 * step <= columns.end; j += 4 * step) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u)
      largest[u] = xsimd::max(largest[u], v::load_unaligned(s + j + u * step));
  }
  for (; j < columns.end; j += step) largest[0] = xsimd::max(largest[0], v::load_unaligned(s + j));
  const C tile_max = detail::reduce_max<C, Arch>(
      xsimd::max(xsimd::max(largest[0], largest[1]), xsimd::max(largest[2], largest[3])));
  // The difference first: the largest key weighs exactly 1, so a row that sees one key returns its
  // value to the last bit.
  const C tile_top = scale * tile_max;
  const C new_max = std::max(row_max, tile_top);
  const v c(scale);
  const v largest_score(tile_max);
  const v offset(tile_top - new_max);
  const auto weight = [&](index_t column) {
    const v w = exp2_nonpositive<C, Arch>(
        fmadd<C, Arch>(v::load_unaligned(s + column) - largest_score, c, offset));
    weight_writer<Panel, Arch>::write(weights, column, w);
    return w;
  };
  v sum[4] = {v(C(0)), v(C(0)), v(C(0)), v(C(0))};
  j = columns.begin;
  for (; j + 4 * step <= columns.end; j += 4 * step) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sum[u] = sum[u] + weight(j + u * step);
  }
  for (; j < columns.end; j += step) sum[0] = sum[0] + weight(j);
  const C total = detail::reduce_add<C, Arch>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return {new_max, total, new_max == row_max ? C(1) : std::exp2(row_max - new_max)};
}

template <class C, class Arch>
inline void scale_row(C* row, index_t count, C factor) noexcept {
  using v = vector<C, Arch>;
  for (index_t t = 0; t < count; t += lanes<C, Arch>) {
    (v::load_unaligned(row + t) * v(factor)).store_unaligned(row + t);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

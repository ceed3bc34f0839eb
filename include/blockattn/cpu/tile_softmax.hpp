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

/// Whether queries in panels of this type take the scale of a call. Rounded to bf16 they would lose
/// it: pairs take its sign alone.
template <class Panel>
inline constexpr bool scale_in_queries = std::is_floating_point_v<Panel>;

/// From queries and keys to scores: with S = (q_factor q) . k, the score is S, or with softcap
/// cap * tanh(inner * S). Forward and backward round a score in the same places, so that the lse of
/// a row with one large score is that score, and its weight in backward exactly 1. Of pairs, S is
/// still to be multiplied by scale_log2, which makes it a base-2 logarithm.
template <class C>
struct score_transform {
  long double q_factor = 1;                 ///< scale / softcap has more digits than fp64
  C inner = 1;                              ///< 1 where scale_in_queries
  C cap = 0;                                ///< 0 = no softcap
  C scale_log2 = std::numbers::log2e_v<C>;  ///< positive; log2(e) where scale_in_queries

  /// For the score score_scale * softcap(scale * q.k). Where scale / softcap is no normal number
  /// the cap bends nothing and is left out.
  template <class Panel = C>
  static score_transform from(double scale, double softcap, double score_scale = 1) noexcept {
    constexpr C smallest = std::numeric_limits<C>::min();
    const long double inner = softcap > 0 ? static_cast<long double>(scale) / softcap : 0;
    const auto cap = static_cast<C>(score_scale * softcap);
    const bool capped = cap != 0 && std::abs(static_cast<C>(inner)) >= smallest;
    score_transform result{
        .q_factor = capped ? inner : static_cast<long double>(scale) * score_scale,
        .cap = capped ? cap : C(0)};
    const long double magnitude = std::abs(result.q_factor);
    if (static_cast<C>(magnitude) < smallest) {
      // Of pairs, 0 * -inf of a hidden column would be NaN: a factor of 0 stays in q.
      result.q_factor = 0;
    } else if (!scale_in_queries<Panel>) {
      result.q_factor = result.q_factor < 0 ? -1 : 1;
      if (capped) {
        result.inner = static_cast<C>(magnitude);
      } else {
        result.scale_log2 = static_cast<C>(std::numbers::log2e_v<long double> * magnitude);
      }
    }
    return result;
  }
};

template <class C, class Arch>
inline void cap_scores(C* s,
                       const index_range& columns,
                       const score_transform<C>& transform) noexcept {
  using v = vector<C, Arch>;
  for (index_t j = columns.begin; j < columns.end; j += lanes<C, Arch>) {
    const v bent = xsimd::tanh(v::load_unaligned(s + j) * v(transform.inner));
    (bent * v(transform.cap)).store_unaligned(s + j);
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
  C row_max;  ///< new maximum of the scores
  C sum;      ///< of this tile's weights
  C rescale;  ///< of the state so far: exp(old maximum - new maximum)
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

/// The weights of a row's scores: exp(s - row_max), row_max the maximum of the old one and the
/// tile's. The largest key weighs exactly 1, so a row that sees one key returns its value to the
/// last bit.
template <class Panel, class Arch>
struct row_weight {
  using v = vector<Panel, Arch>;
  Panel row_max;

  row_weight(const score_transform<Panel>& /*transform*/, Panel tile_max, Panel old_max) noexcept
      : row_max(std::max(old_max, tile_max)) {}
  v operator()(const v& s) const noexcept { return exp_nonpositive<Panel, Arch>(s - v(row_max)); }
};

/// Of pairs: 2^(scale_log2 (S - tile_max) + offset), and a maximum that has the same rounding. Base
/// e would cost one multiplication more, which is 1 to 2 % of the bf16 forward (Zen 4).
template <class Arch>
struct row_weight<bf16_pair, Arch> {
  using v = vector<float, Arch>;
  float row_max;
  float tile_max;
  float scale_log2;
  float offset;

  row_weight(const score_transform<float>& transform, float largest, float old_max) noexcept
      : tile_max(largest), scale_log2(transform.scale_log2) {
    const auto top = static_cast<float>(std::numbers::ln2 * static_cast<double>(scale_log2) *
                                        static_cast<double>(tile_max));
    row_max = std::max(old_max, top);
    offset = row_max == top ? 0.0F : (top - row_max) * std::numbers::log2e_v<float>;
  }
  v operator()(const v& s) const noexcept {
    return exp2_nonpositive<float, Arch>(
        fmadd<float, Arch>(s - v(tile_max), v(scale_log2), v(offset)));
  }
};

/// Writes the weights of a row that sees at least one column and returns its new state. `columns`
/// is a multiple of the vector in both ends. Hidden columns (-inf) get exactly 0. A NaN, or a score
/// beyond the range of C, makes the row's sum NaN.
template <class Panel, class Arch, class C>
inline row_update<C> softmax_row(const C* s,
                                 const index_range& columns,
                                 const score_transform<C>& transform,
                                 C row_max,
                                 Panel* weights) noexcept {
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
  const row_weight<Panel, Arch> weight_of(transform, tile_max, row_max);
  const auto weight = [&](index_t column) {
    const v w = weight_of(v::load_unaligned(s + column));
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
  const C new_max = weight_of.row_max;
  return {new_max, total, new_max == row_max ? C(1) : std::exp(row_max - new_max)};
}

template <class C, class Arch>
inline void scale_row(C* row, index_t count, C factor) noexcept {
  using v = vector<C, Arch>;
  for (index_t t = 0; t < count; t += lanes<C, Arch>) {
    (v::load_unaligned(row + t) * v(factor)).store_unaligned(row + t);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

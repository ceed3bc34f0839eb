// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/tile_softmax.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// sums[r] = a_r . b_r for Rows rows of `count` values, each product summed from left to right as
/// the micro-kernel does: where b_r is also a row of the tile, both give the same bits, and a row
/// that sees one key has a gradient of exactly 0. Rows are as many chains as hide the latency.
template <class Arch, int Rows, class C, class A, class B>
inline void dot_each(
    const A* a, index_t a_stride, const B* b, index_t b_stride, index_t count, C* sums) noexcept {
  using v = vector<C, Arch>;
  v sum[std::size_t{Rows}];
  for (v& s : sum) s = v(C(0));
  for (index_t t = 0; t < count; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      sum[r] = fmadd<C, Arch>(v(static_cast<C>(load_scalar(a[r * a_stride + t]))),
                              v(static_cast<C>(load_scalar(b[r * b_stride + t]))), sum[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) sums[r] = sum[r].get(0);
}

/// sum[i] += part[i] for i < count, a multiple of the vector.
template <class Arch, class C>
inline void add_row(const C* part, index_t count, C* sum) noexcept {
  using v = vector<C, Arch>;
  for (index_t i = 0; i < count; i += lanes<C, Arch>) {
    (v::load_unaligned(sum + i) + v::load_unaligned(part + i)).store_unaligned(sum + i);
  }
}

/// What backward knows of a query row before it sees a key.
template <class C>
struct row_gradient {
  C lse = 0;    ///< logarithm of the softmax denominator
  C delta = 0;  ///< d_o . o - d_lse
};

/// The softcap of backward, with t = tanh(S): s <- cap t and d_s <- (d_s - delta) (1 - t^2).
template <class Arch, class C>
inline void bend_scores(C* s, C* d_s, const index_range& columns, C cap, C delta) noexcept {
  using v = vector<C, Arch>;
  for (index_t j = columns.begin; j < columns.end; j += lanes<C, Arch>) {
    const v t = xsimd::tanh(v::load_unaligned(s + j));
    ((v::load_unaligned(d_s + j) - v(delta)) * (v(C(1)) - t * t)).store_unaligned(d_s + j);
    (t * v(cap)).store_unaligned(s + j);
  }
}

/// From scores to their gradients, for the columns of one row that a tile computed:
///   s[j]   <- p = exp(s[j] - lse)
///   d_s[j] <- p (d_s[j] - delta)               d_s comes in as d_o . v
/// and with softcap s[j] is bent first, d_s also times 1 - tanh^2. The score is rounded as forward
/// rounded it, and lse is subtracted as forward returned it: their last digits, worth 6e-5 at 1000,
/// cancel. In base 2 each would be rounded once more. (A capped score goes through memory: a
/// compiler that fused its product into the subtraction would leave out the rounding.) No
/// reductions: lse makes every weight independent. Both ends of `columns` are multiples of the
/// vector. Columns that the row does not see get any value; clear_columns follows.
template <class Arch, class C>
inline void gradient_of_row(C* s,
                            C* d_s,
                            const index_range& columns,
                            const score_transform<C>& transform,
                            const row_gradient<C>& row) noexcept {
  using v = vector<C, Arch>;
  constexpr index_t step = lanes<C, Arch>;
  const bool capped = transform.cap != 0;
  if (capped) bend_scores<Arch>(s, d_s, columns, transform.cap, row.delta);
  const v lse(row.lse);
  const v delta(capped ? C(0) : row.delta);
  const auto take = [&](index_t j) {
    // An lse of other arithmetic may be less than a score: no weight passes 1.
    const v p = exp_nonpositive<C, Arch>(xsimd::min(v(C(0)), v::load_unaligned(s + j) - lse));
    (p * (v::load_unaligned(d_s + j) - delta)).store_unaligned(d_s + j);
    p.store_unaligned(s + j);
  };
  index_t j = columns.begin;
  for (; j + 4 * step <= columns.end; j += 4 * step) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) take(j + u * step);
  }
  for (; j < columns.end; j += step) take(j);
}

/// Sets the columns outside the sorted runs to 0 in both: hidden pairs have no weight and no
/// gradient. Whatever stood there (NaN of a key that nobody sees) is gone.
template <class C>
inline void clear_columns(C* s,
                          C* d_s,
                          const index_range& columns,
                          std::span<const index_range> runs) noexcept {
  for_each_gap(columns, runs, [&](index_t begin, index_t end) {
    std::fill(s + begin, s + end, C(0));
    std::fill(d_s + begin, d_s + end, C(0));
  });
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

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
  C lse_log2 = 0;  ///< base-2 logarithm of the softmax denominator
  C delta = 0;     ///< d_o . o - d_lse
};

/// From scores to their gradients, for the columns of one row that a tile computed: with
/// c = scale_log2 and S the product q.k,
///   s[j]   <- p = 2^(c S - lse_log2)
///   d_s[j] <- p (d_s[j] - delta)               d_s comes in as d_o . v
/// and with softcap, t = tanh(cap_inner S): p = 2^(c t - lse_log2), d_s also times 1 - t^2. No
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
  const v c(transform.scale_log2);
  const v offset(-row.lse_log2);
  const v delta(row.delta);
  const auto weight = [&](const v& x) {
    // A rounded lse may be less than a score: no weight passes 1.
    return exp2_nonpositive<C, Arch>(xsimd::min(v(C(0)), fmadd<C, Arch>(x, c, offset)));
  };
  if (transform.cap_inner > 0) {
    const v inner(transform.cap_inner);
    for (index_t j = columns.begin; j < columns.end; j += step) {
      const v t = xsimd::tanh(v::load_unaligned(s + j) * inner);
      const v p = weight(t);
      const v bend = v(C(1)) - t * t;
      (p * (v::load_unaligned(d_s + j) - delta) * bend).store_unaligned(d_s + j);
      p.store_unaligned(s + j);
    }
    return;
  }
  const auto take = [&](index_t j) {
    const v p = weight(v::load_unaligned(s + j));
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

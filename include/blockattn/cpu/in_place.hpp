// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/convert.hpp>

/// \file
/// Few query rows over many keys: k and v are read once, where they lie, instead of being packed.
/// Bound by memory.

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// scores[r * score_stride + j] = q_r . k_j for Rows rows and Keys keys; Rows * Keys sums stay in
/// registers.
template <class Arch, int Rows, int Keys, class T, class C>
inline void dot_rows(const C* q,
                     index_t q_stride,
                     const T* k,
                     index_t token_stride,
                     index_t head_dim,
                     C* scores,
                     index_t score_stride) noexcept {
  using v = vector<C, Arch>;
  constexpr index_t width = lanes<C, Arch>;
  v sum[std::size_t{Rows}][std::size_t{Keys}];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < Keys; ++j) sum[r][j] = v(C(0));
  }
  const index_t whole = head_dim / width * width;  // as in load_row
  for (index_t t = 0; t < whole; t += width) {
    v key[std::size_t{Keys}];
#pragma GCC unroll 8
    for (int j = 0; j < Keys; ++j) key[j] = load_values<C, Arch>(k + j * token_stride + t);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const v query = v::load_unaligned(q + r * q_stride + t);
#pragma GCC unroll 8
      for (int j = 0; j < Keys; ++j) sum[r][j] = fmadd<C, Arch>(query, key[j], sum[r][j]);
    }
  }
  C totals[std::size_t{Rows} * std::size_t{Keys}];
  reduce_add_each<Rows * Keys, C, Arch>(&sum[0][0], totals);
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < Keys; ++j) {
      C total = totals[r * Keys + j];
      for (index_t rest = whole; rest < head_dim; ++rest) {
        total += q[r * q_stride + rest] * static_cast<C>(load_scalar(k[j * token_stride + rest]));
      }
      scores[r * score_stride + j] = total;
    }
  }
}

/// Asks for Keys rows ahead of their use. Addresses past the last key are harmless: nothing is
/// read.
template <int Keys, class T>
inline void prefetch_rows([[maybe_unused]] const T* k,
                          [[maybe_unused]] index_t token_stride,
                          index_t head_dim) noexcept {
#if defined(__GNUC__)
  for (int j = 0; j < Keys; ++j) {
    for (index_t t = 0; t < head_dim; t += 64 / static_cast<index_t>(sizeof(T))) {
      __builtin_prefetch(k + j * token_stride + t);
    }
  }
#endif
}

/// Scores of `rows` rows against `keys` keys in place; 4 x 4 sums at a time.
template <class Arch, class T, class C>
inline void score_in_place(index_t rows,
                           const C* q,
                           index_t q_stride,
                           const T* k,
                           index_t token_stride,
                           index_t keys,
                           index_t head_dim,
                           C* scores,
                           index_t score_stride) noexcept {
  const auto sweep = [&]<int Rows>(std::integral_constant<int, Rows>, index_t row) {
    const C* const q_rows = q + row * q_stride;
    C* const out = scores + row * score_stride;
    index_t j = 0;
    for (; j + 4 <= keys; j += 4) {
      // Measured on Zen 4, one query row group over 134 MB of keys: 11.2 ms, 8.3 ms with keys
      // fetched 16 ahead.
      prefetch_rows<4>(k + (j + 16) * token_stride, token_stride, head_dim);
      dot_rows<Arch, Rows, 4>(q_rows, q_stride, k + j * token_stride, token_stride, head_dim,
                              out + j, score_stride);
    }
    for (; j < keys; ++j) {
      dot_rows<Arch, Rows, 1>(q_rows, q_stride, k + j * token_stride, token_stride, head_dim,
                              out + j, score_stride);
    }
  };
  index_t row = 0;
  for (; row + 4 <= rows; row += 4) sweep(std::integral_constant<int, 4>{}, row);
  if (rows - row == 3) sweep(std::integral_constant<int, 3>{}, row);
  if (rows - row == 2) sweep(std::integral_constant<int, 2>{}, row);
  if (rows - row == 1) sweep(std::integral_constant<int, 1>{}, row);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

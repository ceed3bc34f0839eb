// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/cpu/convert.hpp>
#include <blockattn/cpu/simd.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// Two bfloat16 that are multiplied with two others and summed into one fp32 by VDPBF16PS. `first`
/// is the lower half.
struct bf16_pair {
  bfloat16 first;
  bfloat16 second;
};

/// How a product operand of type Panel is read: float and double multiply one value, bf16_pair two
/// at once.
template <class Panel, class Arch>
struct operand {
  using accumulator = Panel;
  using value = vector<Panel, Arch>;
  static constexpr index_t values_per_step = 1;  ///< along the summed dimension
  static value broadcast(const Panel* p) noexcept { return value(*p); }
  static value load(const Panel* p) noexcept { return value::load_unaligned(p); }
  static value multiply_add(const value& a, const value& b, const value& sum) noexcept {
    return fmadd<Panel, Arch>(a, b, sum);
  }
};

#if defined(__AVX512BF16__)
template <class Arch>
struct operand<bf16_pair, Arch> {
  using accumulator = float;
  using value = __m512bh;
  static constexpr index_t values_per_step = 2;
  static value broadcast(const bf16_pair* p) noexcept {
    std::int32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return reinterpret_cast<value>(_mm512_set1_epi32(bits));
  }
  static value load(const bf16_pair* p) noexcept {
    return reinterpret_cast<value>(_mm512_loadu_si512(p));
  }
  static vector<float, Arch> multiply_add(const value& a,
                                          const value& b,
                                          const vector<float, Arch>& sum) noexcept {
    return _mm512_dpbf16_ps(sum, a, b);
  }
};
#endif

/// The register tile. 8 x 2 vectors hold 16 accumulators of AVX-512's (or NEON's) 32 registers and
/// divide every query tile and head dim; measured on Zen 5: 8 x 2 = 6 x 4 = 12 x 2 within 2 %, 4 x
/// 4 loses 20 %, 16 x 1 8 %. Zen 4: 0.98 of the FMA peak from L1. With 16 registers 6 x 2 leaves
/// room for the operands.
template <class Arch>
struct register_tile {
  static constexpr bool has_32_registers = is_avx512<Arch> || std::is_base_of_v<xsimd::neon, Arch>;
  static constexpr int rows = has_32_registers ? 8 : 6;
  static constexpr int vectors = 2;
};

/// Columns of a packed panel: one register tile wide.
template <class C, class Arch>
inline constexpr index_t panel_width = register_tile<Arch>::vectors* lanes<C, Arch>;

/// How the left operand lies: `rows` has step t of row r at a[r * lda + t], `columns` (a transposed
/// matrix) at a[t * lda + r].
enum class left_order { rows, columns };

/// c[r][j] (+)= sum over t in [0, steps) of a(r, t) . b[t * ldb + j], r < Rows, j < panel_width.
template <class Arch, int Rows, left_order Order = left_order::rows, class Panel, class C>
inline void multiply_rows(const Panel* a,
                          index_t lda,
                          const Panel* b,
                          index_t ldb,
                          index_t steps,
                          C* c,
                          index_t ldc,
                          accumulate_mode mode) noexcept {
  using v = vector<C, Arch>;
  using op = operand<Panel, Arch>;
  constexpr index_t width = lanes<C, Arch>;
  v left[std::size_t{Rows}];
  v right[std::size_t{Rows}];
  if (mode == accumulate_mode::assign) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) left[r] = right[r] = v(C(0));
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      left[r] = v::load_unaligned(c + r * ldc);
      right[r] = v::load_unaligned(c + r * ldc + width);
    }
  }
  for (index_t t = 0; t < steps; ++t) {
    const auto b_left = op::load(b + t * ldb);
    const auto b_right = op::load(b + t * ldb + width);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const auto broadcast =
          op::broadcast(Order == left_order::rows ? a + r * lda + t : a + t * lda + r);
      left[r] = op::multiply_add(broadcast, b_left, left[r]);
      right[r] = op::multiply_add(broadcast, b_right, right[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    left[r].store_unaligned(c + r * ldc);
    right[r].store_unaligned(c + r * ldc + width);
  }
}

/// The same for any number of rows from 1 to register_tile<Arch>::rows, each with a kernel of its
/// own: few rows over many keys read b once.
template <class Arch,
          left_order Order = left_order::rows,
          int Rows = register_tile<Arch>::rows,
          class Panel,
          class C>
inline void multiply_panel(index_t rows,
                           const Panel* a,
                           index_t lda,
                           const Panel* b,
                           index_t ldb,
                           index_t steps,
                           C* c,
                           index_t ldc,
                           accumulate_mode mode) noexcept {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      multiply_rows<Arch, Rows, Order>(a, lda, b, ldb, steps, c, ldc, mode);
    } else {
      multiply_panel<Arch, Order, Rows - 1>(rows, a, lda, b, ldb, steps, c, ldc, mode);
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <blockattn/core/simd.hpp>
#include <cstdint>
#include <iterator>
#include <numbers>

/// \file
/// A logarithm of our own: that of xsimd 8.1 does not compile for AVX-512 without optimisation, and
/// spends half of its time on numbers that no probability is.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// How a number is written, and log(1 + f) as f - f^2 / 2 + s (f^2 / 2 + R(s^2)) with s = f / (2 +
/// f), R from FreeBSD's e_log2f.c and e_log2.c: relative error below 2^-34 and 2^-58 for 1 + f in
/// [sqrt(1/2), sqrt(2)].
template <class C>
struct log2_constants;

template <>
struct log2_constants<float> {
  using bits = std::uint32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr bits one = 0x3f800000, sqrt_half = 0x3f3504f3;
  static constexpr float whole = 0x1p23F;  // a number this large has no fraction
  static constexpr float series[] = {0x1.f13c4cp-3F, 0x1.23d3dcp-2F, 0x1.999c26p-2F,
                                     0x1.555554p-1F};
};

template <>
struct log2_constants<double> {
  using bits = std::uint64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr bits one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double whole = 0x1p52;
  static constexpr double series[] = {
      0x1.2f112df3e5244p-3, 0x1.39a09d078c69fp-3, 0x1.7466496cb03dep-3, 0x1.c71c51d8e78afp-3,
      0x1.2492494229359p-2, 0x1.999999997fa04p-2, 0x1.5555555555593p-1};
};

/// log2 x of normal x > 0, within 2 units in the last place, also near 1 where it vanishes. Of 0
/// and of subnormal x some finite number from -1 below the smallest normal exponent on, of inf and
/// NaN nothing useful.
template <class C, class Arch>
inline vector<C, Arch> log2_normal(const vector<C, Arch>& x) noexcept {
  using v = vector<C, Arch>;
  using constants = log2_constants<C>;
  using word = typename constants::bits;
  using words = vector<word, Arch>;
  // Moved so that the exponent steps at sqrt(1/2) 2^k: then x = 2^k (1 + f).
  const words moved = std::bit_cast<words>(x) + words(constants::one - constants::sqrt_half);
  const words exponent = moved >> constants::mantissa_bits;
  const v k = std::bit_cast<v>(exponent | std::bit_cast<words>(v(constants::whole))) -
              v(constants::whole + static_cast<C>(constants::one >> constants::mantissa_bits));
  const words mantissa = moved & words((word{1} << constants::mantissa_bits) - 1);
  const v f = std::bit_cast<v>(mantissa + words(constants::sqrt_half)) - v(C(1));

  const v s = f / (f + v(C(2)));
  const v z = s * s;
  v r(constants::series[0]);
  for (std::size_t i = 1; i < std::size(constants::series); ++i) {
    r = fmadd<C, Arch>(r, z, v(constants::series[i]));
  }
  const v half_square = f * f * v(C(0.5));
  const v log = f - (half_square - s * fmadd<C, Arch>(r, z, half_square));
  return fmadd<C, Arch>(log, v(std::numbers::log2e_v<C>), k);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

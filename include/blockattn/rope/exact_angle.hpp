// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/config.hpp>
#include <cmath>
#include <cstdint>
#include <numbers>

/// \file
/// cos(p * f) and sin(p * f) for products far beyond what a double holds modulo 2 pi. The frequency
/// is kept as a 128-bit fraction of a turn; a whole position times it, modulo one turn, is integer
/// arithmetic that wraps. What remains is at most pi / 4 and goes through polynomials. Integers
/// also give the same bits on every platform up to the last step, and -ffast-math cannot
/// reassociate them: a first version with compensated doubles lost its precision under that flag.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// A fraction of a turn in units of 2^-128, modulo one turn.
struct turn_fraction {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  constexpr turn_fraction& operator+=(const turn_fraction& other) noexcept {
    low += other.low;
    high += other.high + (low < other.low ? 1 : 0);
    return *this;
  }
};

/// The fraction times 2^shift: whole turns leave on the left, units on the right.
constexpr turn_fraction shifted(const turn_fraction& f, int shift) noexcept {
  if (shift >= 128 || shift <= -128) return {};
  if (shift >= 64) return {f.low << (shift - 64), 0};
  if (shift > 0) return {f.high << shift | f.low >> (64 - shift), f.low << shift};
  if (shift == 0) return f;
  if (shift > -64) return {f.high >> -shift, f.low >> -shift | f.high << (64 + shift)};
  return {0, f.high >> (-shift - 64)};
}

/// What a pair turns per position, prepared for exact_angle.
struct turn_rate {
  turn_fraction exact;  ///< modulo one turn, for whole positions
  double turns = 0;     ///< for the fractional part of a position

  turn_rate() = default;
  /// `frequency` in radians per position, >= 0. Error of `exact`: at most
  /// 2^-122 + frequency * 2^-128 turns.
  explicit turn_rate(double frequency) noexcept : turns(frequency / (2 * std::numbers::pi)) {
    constexpr turn_fraction one_over_two_pi = {0x28be60db9391054aU, 0x7f09d5f47d4d3770U};
    int exponent = 0;
    const auto mantissa =
        static_cast<std::uint64_t>(std::ldexp(std::frexp(frequency, &exponent), 53));
    for (int bit = 0; bit < 53; ++bit) {
      if ((mantissa >> bit & 1) != 0) exact += shifted(one_over_two_pi, exponent - 53 + bit);
    }
  }
};

/// |position| = whole + fraction.
struct split_position {
  std::uint64_t whole;
  double fraction;  ///< [0, 1)
  double sign;      ///< +1 or -1
};

/// |position| < 2^63.
template <class Arch>
inline split_position split(double position) noexcept {
  const double magnitude = std::fabs(position);
  const auto whole = static_cast<std::uint64_t>(magnitude);
  return {whole, magnitude - static_cast<double>(whole), position < 0 ? -1.0 : 1.0};
}

/// floor(a * b / 2^64), at most 2 too small: the lowest partial product is left out.
template <class Arch>
constexpr std::uint64_t high_product(std::uint64_t a, std::uint64_t b) noexcept {
  constexpr std::uint64_t mask = 0xffffffffU;
  return (a >> 32) * (b >> 32) + ((a >> 32) * (b & mask) >> 32) + ((a & mask) * (b >> 32) >> 32);
}

/// |position| * rate modulo one turn, in units of 2^-64 turns.
template <class Arch>
inline std::uint64_t phase(const split_position& position, const turn_rate& rate) noexcept {
  std::uint64_t turned =
      position.whole * rate.exact.high + high_product<Arch>(position.whole, rate.exact.low);
  if (position.fraction != 0) {
    const double part = position.fraction * rate.turns;
    turned += static_cast<std::uint64_t>((part - std::floor(part)) * 0x1p64);
  }
  return turned;
}

struct cosine_sine {
  double cosine;
  double sine;
};

/// For |x| <= pi / 4: Taylor series up to x^16 and x^17, truncation below 3e-18, so that rounding
/// dominates.
template <class Arch>
inline cosine_sine cosine_sine_polynomials(double x) noexcept {
  const double z = x * x;
  double c = 1.0 / 20922789888000.0;  // 1 / 16!
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 0.5;
  double s = 1.0 / 355687428096000.0;  // 1 / 17!
  s = s * z - 1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  return {c * z + 1.0, s * z * x + x};
}

/// cos and sin of position * frequency. Absolute error below 2^-51 * max(1, frequency) for
/// |position| <= 2^52.
template <class Arch>
inline cosine_sine exact_angle(const split_position& position, const turn_rate& rate) noexcept {
  const std::uint64_t turned = phase<Arch>(position, rate);
  const std::uint64_t quarters = (turned + (std::uint64_t{1} << 61)) >> 62;  // to nearest; 4 is 0
  const auto rest = static_cast<std::int64_t>(turned - (quarters << 62));    // +- 1/8 turn
  const auto [c, s] =
      cosine_sine_polynomials<Arch>(static_cast<double>(rest) * (std::numbers::pi * 0x1p-63));
  const bool swapped = quarters % 2 == 1;
  const double cosine = swapped ? s : c;
  const double sine = swapped ? c : s;
  return {(quarters + 1) % 4 < 2 ? cosine : -cosine,
          quarters % 4 < 2 ? position.sign * sine : -position.sign * sine};
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail

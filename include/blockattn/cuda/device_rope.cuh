// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/cuda/config.cuh>
#include <blockattn/rope/rope.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A rope without its magnitude, small enough to be a kernel's parameter (4 KiB on the oldest
/// drivers). Position times frequency is reduced exactly, in integers, as rope::angles does it.
struct device_rope {
  static constexpr index_t most_pairs = 128;

  blockattn::detail::turn_rate rates[most_pairs];  ///< 0 behind the last pair
  int pairs = 0;
  int step = 2;   ///< from one pair's first value to the next pair's
  int apart = 1;  ///< from a pair's first value to its second

  device_rope() = default;
  /// `rotation` turns at most 2 most_pairs values.
  explicit device_rope(const rope& rotation)
      : pairs(static_cast<int>(rotation.pairs())),
        step(rotation.pairing() == rope_pairing::interleaved ? 2 : 1),
        apart(rotation.pairing() == rope_pairing::interleaved ? 1 : pairs) {
    std::copy(rotation.rates().begin(), rotation.rates().end(), rates);
  }

  /// |position| * frequencies()[pair] modulo one turn, in units of 2^-64 turns.
  __device__ __forceinline__ unsigned long long phase(double position, int pair) const {
    const double magnitude = fabs(position);
    const auto whole = static_cast<unsigned long long>(magnitude);
    const double fraction = magnitude - static_cast<double>(whole);
    const blockattn::detail::turn_rate& rate = rates[pair];
    unsigned long long turned = whole * rate.exact.high + __umul64hi(whole, rate.exact.low);
    if (fraction != 0) {
      const double part = fraction * rate.turns;
      turned += static_cast<unsigned long long>((part - floor(part)) * 0x1p64);
    }
    return turned;
  }

  /// (cos, sin) of position * frequencies()[pair], |position| < 2^63; each is off by at most 2^-22:
  /// the reduced angle is rounded to fp32, then come its sine and cosine.
  __device__ __forceinline__ float2 angle(double position, int pair) const {
    const float half_turns =
        static_cast<float>(static_cast<long long>(phase(position, pair))) * 0x1p-63F;
    float2 result;
    sincospif(half_turns, &result.y, &result.x);
    if (position < 0) result.y = -result.y;
    return result;
  }

  /// The same to 2^-40, for one rounding to fp32: what remains of the turn, at most pi / 4, goes
  /// through Taylor series in fp64 up to x^12 and x^13.
  __device__ __forceinline__ double2 exact_angle(double position, int pair) const {
    const unsigned long long turned = phase(position, pair);
    const auto quarters = static_cast<unsigned>((turned + (1ULL << 61)) >> 62);  // to nearest
    const auto rest = static_cast<long long>(turned - (1ULL << 62) * quarters);
    constexpr double pi = 3.14159265358979323846;
    const double x = static_cast<double>(rest) * (pi * 0x1p-63);
    const double z = x * x;
    double c = 1.0 / 479001600.0;  // 1 / 12!
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    c = c * z + 1.0;
    double s = 1.0 / 6227020800.0;  // 1 / 13!
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = s * z * x + x;
    const bool swapped = quarters % 2 == 1;
    const double cosine = swapped ? s : c;
    const double sine = swapped ? c : s;
    return {(quarters + 1) % 4 < 2 ? cosine : -cosine,
            (quarters % 4 < 2) == (position >= 0) ? sine : -sine};
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

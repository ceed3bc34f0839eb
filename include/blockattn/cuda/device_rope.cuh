// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/config.cuh>
#include <blockattn/rope/rope.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A rope without its magnitude, small enough to be a kernel's parameter. Position times frequency
/// is reduced exactly, in integers, as rope::angles does it.
struct device_rope {
  static constexpr index_t most_pairs = 128;

  blockattn::detail::turn_rate rates[most_pairs];
  int pairs = 0;
  int step = 2;   ///< from one pair's first value to the next pair's
  int apart = 1;  ///< from a pair's first value to its second

  device_rope() = default;
  /// `rotation` turns at most 2 most_pairs values.
  explicit device_rope(const rope& rotation)
      : pairs(static_cast<int>(rotation.pairs())),
        step(rotation.pairing() == rope_pairing::interleaved ? 2 : 1),
        apart(rotation.pairing() == rope_pairing::interleaved ? 1 : pairs) {
    for (int i = 0; i < pairs; ++i) {
      rates[i] = blockattn::detail::turn_rate(rotation.frequencies()[static_cast<std::size_t>(i)]);
    }
  }

  /// (cos, sin) of position * frequencies()[pair], |position| < 2^63; each is off by at most 2^-22:
  /// the reduced angle is rounded to fp32, then come its sine and cosine.
  __device__ __forceinline__ float2 angle(double position, int pair) const {
    const double magnitude = fabs(position);
    const auto whole = static_cast<unsigned long long>(magnitude);
    const double fraction = magnitude - static_cast<double>(whole);
    const blockattn::detail::turn_rate& rate = rates[pair];
    // In units of 2^-64 turns, modulo one turn.
    unsigned long long turned = whole * rate.exact.high + __umul64hi(whole, rate.exact.low);
    if (fraction != 0) {
      const double part = fraction * rate.turns;
      turned += static_cast<unsigned long long>((part - floor(part)) * 0x1p64);
    }
    const float half_turns = static_cast<float>(static_cast<long long>(turned)) * 0x1p-63F;
    float2 result;
    sincospif(half_turns, &result.y, &result.x);
    if (position < 0) result.y = -result.y;
    return result;
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

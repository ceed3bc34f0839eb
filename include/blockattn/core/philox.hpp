// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <blockattn/core/config.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI {

/// Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1,
/// 2, 3, SC 2011): a bijection of the counter, chosen by the key, whose values pass as independent
/// random bits. No state: equal arguments give equal words on every platform, in any order. 20
/// multiplications.
constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += 0x9E3779B9;  // the fractional parts of the golden ratio
    key[1] += 0xBB67AE85;  // and of sqrt(3), times 2^32
  }
  return counter;
}

/// 64 random bits that belong to a pair of numbers under a seed: the first two words, low word
/// first, of philox4x32 with counter (first, second) and key (seed), each number low word first.
constexpr std::uint64_t random_bits(std::uint64_t seed,
                                    std::uint64_t first,
                                    std::uint64_t second) noexcept {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  const std::array<std::uint32_t, 4> words =
      philox4x32({low(first), high(first), low(second), high(second)}, {low(seed), high(seed)});
  return std::uint64_t{words[1]} << 32 | words[0];
}

}  // namespace blockattn::inline BLOCKATTN_ABI

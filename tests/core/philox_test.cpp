// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/philox.hpp>

#include <bit>
#include <limits>

#include "support/catch.hpp"

using namespace blockattn;

namespace {

using counter = std::array<std::uint32_t, 4>;
using key = std::array<std::uint32_t, 2>;
constexpr std::uint32_t ones = std::numeric_limits<std::uint32_t>::max();

}  // namespace

TEST_CASE("philox4x32 gives the published answers", "[philox]") {
  // Random123, tests/kat_vectors, the three lines "philox4x32 10": zeros, ones, digits of pi.
  STATIC_REQUIRE(philox4x32(counter{0, 0, 0, 0}, key{0, 0}) ==
                 counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  STATIC_REQUIRE(philox4x32(counter{ones, ones, ones, ones}, key{ones, ones}) ==
                 counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  STATIC_REQUIRE(philox4x32(counter{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                            key{0xa4093822, 0x299f31d0}) ==
                 counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random_bits uses every bit of its numbers, low words first", "[philox]") {
  // Computed apart, from the paper's definition.
  STATIC_REQUIRE(random_bits(0x0123456789abcdef, 3, 2) == 0x05d85251f931138e);
  STATIC_REQUIRE(random_bits(1, std::uint64_t{1} << 32 | 5, 7) == 0xf93d0eb1bb4d25c8);
  // One changed bit of an argument changes about half of the 64: at least 10 in every case, where
  // fewer have probability 2^-26 each.
  const std::uint64_t before = random_bits(11, 22, 33);
  for (int bit = 0; bit < 64; ++bit) {
    CAPTURE(bit);
    const std::uint64_t flip = std::uint64_t{1} << bit;
    CHECK(std::popcount(before ^ random_bits(11 ^ flip, 22, 33)) >= 10);
    CHECK(std::popcount(before ^ random_bits(11, 22 ^ flip, 33)) >= 10);
    CHECK(std::popcount(before ^ random_bits(11, 22, 33 ^ flip)) >= 10);
  }
}

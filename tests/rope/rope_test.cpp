// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/rope/rope.hpp>
#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"
#include "support/rope_variants.hpp"

namespace blockattn_test {

TEST_CASE("angles of every variant are those of its frequencies, times the factor", "[rope]") {
  const std::uint64_t seed = test_seed(2);
  CAPTURE(seed);
  random_source random(seed);
  for (const auto& [name, rotation] : rope_variants()) {
    CAPTURE(name);
    const auto pairs = static_cast<std::size_t>(rotation.pairs());
    std::vector<double> cosines(pairs), sines(pairs);
    std::vector<float> cosines32(pairs), sines32(pairs);
    for (const double position :
         {0.0, 1.0, -1.0, 16777217.0, 0x1p40 + 3, -0x1p52, random.real(-1e6, 1e6)}) {
      for (const double factor : {1.0, rotation.attention_factor(), -2.5}) {
        CAPTURE(position, factor);
        rotation.angles(position, cosines.data(), sines.data(), factor);
        rotation.angles(position, cosines32.data(), sines32.data(), factor);
        for (std::size_t i = 0; i < pairs; ++i) {
          const auto exact = exact_turn(position, rotation.frequencies()[i]);
          CHECK(std::abs(cosines[i] - factor * static_cast<double>(exact.real())) < 2e-15);
          CHECK(std::abs(sines[i] - factor * static_cast<double>(exact.imag())) < 2e-15);
          CHECK(cosines32[i] == static_cast<float>(cosines[i]));
          CHECK(sines32[i] == static_cast<float>(sines[i]));
        }
      }
    }
  }
}

TEST_CASE("rope remembers what it was made for", "[rope]") {
  const rope whole({.head_dim = 64});
  CHECK(whole.head_dim() == 64);
  CHECK(whole.rotary_dim() == 64);
  CHECK(whole.pairs() == 32);
  CHECK(whole.pairing() == rope_pairing::half_split);
  CHECK(whole.attention_factor() == 1.0);
  const rope partial(
      {.head_dim = 80, .rotary_dim = 32, .pairing = rope_pairing::interleaved, .theta = 5e5});
  CHECK(partial.head_dim() == 80);
  CHECK(partial.rotary_dim() == 32);
  CHECK(partial.frequencies().size() == 16);
  CHECK(partial.pairing() == rope_pairing::interleaved);
}

TEST_CASE("rope refuses sizes that cannot rotate", "[rope]") {
  CHECK_THROWS_WITH(rope(rope_options{}), contains("head_dim is 0"));
  CHECK_THROWS_WITH(rope({.head_dim = -8}), contains("head_dim is -8"));
  CHECK_THROWS_WITH(rope({.head_dim = 7}), contains("rotary_dim is 7"));
  CHECK_THROWS_WITH(rope({.head_dim = 8, .rotary_dim = 10}), contains("rotary_dim is 10"));
  CHECK_THROWS_WITH(rope({.head_dim = 8, .rotary_dim = -2}), contains("rotary_dim is -2"));
  CHECK_THROWS_WITH(rope({.head_dim = 514}), contains("514, more than 512"));
  CHECK_NOTHROW(rope({.head_dim = 512}));
  CHECK_THROWS_WITH(rope({.head_dim = 8, .pairing = static_cast<rope_pairing>(-1)}),
                    contains("pairing is -1, not one of its enumerators 0 to 1"));
  CHECK_NOTHROW(rope({.head_dim = 7, .rotary_dim = 6}));
}

TEST_CASE("rope refuses length-dependent scaling and says why", "[rope]") {
  CHECK_THROWS_WITH(rope({.head_dim = 8, .scaling = length_dependent_rope_scaling::dynamic_ntk}),
                    contains("dynamic NTK") && contains("length of the prompt"));
  CHECK_THROWS_WITH(rope({.head_dim = 8, .scaling = length_dependent_rope_scaling::longrope}),
                    contains("LongRoPE") && contains("frequency_divisors"));
  CHECK_THROWS_WITH(rope({.head_dim = 8, .scaling = static_cast<length_dependent_rope_scaling>(2)}),
                    contains("length_dependent_rope_scaling is 2"));
}

}  // namespace blockattn_test

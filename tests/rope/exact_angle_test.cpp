// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/rope/exact_angle.hpp>
#include <cmath>

#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/rope_variants.hpp"

namespace blockattn_test {
namespace {

/// Largest error of cos and sin against the long double oracle.
double angle_error(double position, double frequency) {
  const auto exact = exact_turn(position, frequency);
  const detail::cosine_sine angle =
      detail::exact_angle<void>(detail::split<void>(position), detail::turn_rate(frequency));
  return static_cast<double>(
      std::max(std::abs(angle.cosine - exact.real()), std::abs(angle.sine - exact.imag())));
}

double documented_bound(double frequency) { return 0x1p-51 * std::max(1.0, frequency); }

}  // namespace

TEST_CASE("The oracle itself agrees with cos and sin where those are exact", "[rope]") {
  for (const double position : {0.0, 1.0, -1.0, 0.25, 3.0, 1000.0, -4095.5}) {
    const auto turn = exact_turn(position, 0.5);  // the product is exact
    CHECK(std::abs(static_cast<double>(turn.real()) - std::cos(position * 0.5)) < 1e-15);
    CHECK(std::abs(static_cast<double>(turn.imag()) - std::sin(position * 0.5)) < 1e-15);
  }
}

TEST_CASE("exact_angle keeps its bound at every magnitude of the position", "[rope]") {
  const std::uint64_t seed = test_seed(1);
  CAPTURE(seed);
  random_source random(seed);
  for (int exponent = -30; exponent <= 52; ++exponent) {
    for (int repeat = 0; repeat < 50; ++repeat) {
      const double magnitude = std::ldexp(random.real(0.5, 1), exponent);
      const double position = random.chance(0.5) ? magnitude : -magnitude;
      const double whole = std::nearbyint(position);
      const double frequency = random.chance(0.1) ? 1.0 : std::exp(random.real(-16, 3));
      CAPTURE(position, frequency);
      CHECK(angle_error(position, frequency) <= documented_bound(frequency));
      CHECK(angle_error(whole, frequency) <= documented_bound(frequency));
    }
  }
}

TEST_CASE("exact_angle is right next to multiples of a quarter turn", "[rope]") {
  // Products of integers that lie within 1e-10 to 1e-16 of a multiple of pi / 2: numerators of the
  // continued fraction of pi / 2, and their neighbours.
  for (const double numerator :
       {11.0, 344.0, 355.0, 51819.0, 52174.0, 573204.0, 4846147.0, 37362253.0, 42208400.0,
        122925461.0, 534483448.0, 3083975227.0, 6381956970095103.0 / 4}) {
    for (const double position : {numerator, -numerator, numerator + 1}) {
      CAPTURE(position);
      CHECK(angle_error(position, 1.0) <= documented_bound(1.0));
    }
  }
}

TEST_CASE("An fp64 product would fail where exact_angle does not", "[rope]") {
  const double position = 0x1p40 + 1;
  const double frequency = std::pow(10000.0, -2.0 / 64);
  const double naive = std::cos(position * frequency);
  CHECK(std::abs(naive - static_cast<double>(exact_turn(position, frequency).real())) > 1e-6);
  CHECK(angle_error(position, frequency) < 1e-15);
}

TEST_CASE("Position 0 and frequency 0 turn by nothing at all", "[rope]") {
  for (const auto& [position, frequency] :
       {std::pair{0.0, 1.0}, std::pair{-0.0, 0.3}, std::pair{0x1p52, 0.0}, std::pair{-7.5, 0.0}}) {
    const auto angle =
        detail::exact_angle<void>(detail::split<void>(position), detail::turn_rate(frequency));
    CHECK(angle.cosine == 1.0);
    CHECK(angle.sine == 0.0);
  }
}

}  // namespace blockattn_test

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace distillation {

/// Random numbers that are the same on every platform, from a seed alone: SplitMix64 (Steele, Lea,
/// Flood 2014). Every batch has a source of its own, seeded by what it is for and the number of its
/// step; a resumed run therefore needs no state of a generator, only the step.
class random_source {
 public:
  explicit random_source(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() { return mixed(state_ += golden_ratio); }

  /// Uniform in [0, bound).
  std::uint32_t below(std::uint32_t bound) {
    return static_cast<std::uint32_t>(((next() >> 32) * bound) >> 32);
  }

  /// Uniform in (0, 1].
  double uniform() { return static_cast<double>((next() >> 11) + 1) * 0x1p-53; }

  bool chance(double probability) { return uniform() <= probability; }

  /// Standard normal (Box-Muller).
  double normal() {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

  /// A seed for each combination of numbers.
  template <class... Numbers>
  static std::uint64_t seed_of(Numbers... numbers) {
    std::uint64_t seed = 0;
    ((seed = mixed(seed + golden_ratio + static_cast<std::uint64_t>(numbers))), ...);
    return seed;
  }

 private:
  static constexpr std::uint64_t golden_ratio = 0x9e3779b97f4a7c15;
  static constexpr std::uint64_t mixed(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

}  // namespace distillation

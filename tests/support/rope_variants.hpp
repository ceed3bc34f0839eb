// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/heads_view.hpp>
#include <blockattn/rope/rope.hpp>
#include <cmath>
#include <complex>
#include <string>
#include <vector>

namespace blockattn_test {

using namespace blockattn;

struct named_rope {
  std::string name;
  rope rotation;
};

/// Every scaling, with both pairings, on whole, partial and no rotation.
inline std::vector<named_rope> rope_variants() {
  const std::vector<double> divisors = {1, 1.5, 2, 4, 8, 16, 32, 32};
  const std::vector<double> frequencies = {2, 1, 0.5, 0.1, 0.01, 0.001, 1e-6, 0};
  const std::vector<std::pair<std::string, rope_options>> scaled = {
      {"plain", {}},
      {"theta", {.theta = 1e6}},
      {"linear", {.scaling = linear_rope_scaling{.factor = 3}}},
      {"ntk", {.scaling = ntk_rope_scaling{.factor = 4}}},
      {"yarn", {.scaling = yarn_rope_scaling{.factor = 4, .original_context = 4096}}},
      {"llama3", {.theta = 5e5, .scaling = llama3_rope_scaling{}}},
      {"divisors", {.frequency_divisors = divisors}},
      {"frequencies", {.frequencies = frequencies}},
      {"attention factor", {.frequencies = frequencies, .attention_factor = 0.75}},
  };
  std::vector<named_rope> variants;
  for (const rope_pairing pairing : {rope_pairing::half_split, rope_pairing::interleaved}) {
    const std::string suffix = pairing == rope_pairing::half_split ? "/half_split" : "/interleaved";
    for (auto [name, options] : scaled) {
      options.pairing = pairing;
      options.head_dim = 16;
      variants.push_back({name + suffix, rope(options)});
      options.head_dim = 24;
      options.rotary_dim = 16;
      variants.push_back({name + suffix + "/partial", rope(options)});
    }
    // Whole chunks of the loops and a remainder of three pairs.
    variants.push_back(
        {"wide" + suffix, rope({.head_dim = 72, .rotary_dim = 70, .pairing = pairing})});
    variants.push_back(
        {"none" + suffix, rope({.head_dim = 8, .rotary_dim = 0, .pairing = pairing})});
  }
  return variants;
}

/// exp(i * position * frequency), both taken as the exact doubles they are. The position is cut
/// into pieces of at most 11 bits: each piece times the 53 bits of the frequency is exact in the 64
/// bits of a long double, whose sine and cosine are accurate for every argument; the turns are
/// multiplied.
inline std::complex<long double> exact_turn(double position, double frequency) {
  std::complex<long double> turn(1, 0);
  double rest = std::abs(position);
  while (rest != 0) {
    int exponent = 0;
    std::frexp(rest, &exponent);
    const double unit = std::ldexp(1.0, exponent - 11);
    const double piece = std::floor(rest / unit) * unit;
    rest -= piece;
    const long double angle = static_cast<long double>(piece) * frequency;
    turn *= std::complex<long double>(std::cos(angle), std::sin(angle));
  }
  return position < 0 ? std::conj(turn) : turn;
}

/// The definition: pairs of a row times factor * exp(i * position * frequency).
inline std::vector<double> rotated_by_definition(const rope& rotation,
                                                 const std::vector<double>& row,
                                                 double position,
                                                 double factor) {
  std::vector<double> out = row;
  const auto pairs = static_cast<std::size_t>(rotation.pairs());
  for (std::size_t i = 0; i < pairs; ++i) {
    const bool split = rotation.pairing() == rope_pairing::half_split;
    const std::size_t first = split ? i : 2 * i;
    const std::size_t second = split ? i + pairs : 2 * i + 1;
    const std::complex<long double> pair(row[first], row[second]);
    const auto turned =
        static_cast<long double>(factor) * pair * exact_turn(position, rotation.frequencies()[i]);
    out[first] = static_cast<double>(turned.real());
    out[second] = static_cast<double>(turned.imag());
  }
  return out;
}

inline double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

/// Largest |a - b|; NaN when there is one.
inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

}  // namespace blockattn_test

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index.hpp>
#include <blockattn/core/storage.hpp>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

namespace blockattn_test {

using namespace blockattn;

/// The seed of a property test: its default, or BLOCKATTN_SEED from the environment to repeat a
/// failure. Print it with CAPTURE(seed) so that a failure shows its repro line.
inline std::uint64_t test_seed(std::uint64_t default_seed) {
  const char* text = std::getenv("BLOCKATTN_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : default_seed;
}

/// How many random cases a test draws: `usual`, times BLOCKATTN_CASE_FACTOR from the environment,
/// with which tests/run_long.sh searches longer.
inline int test_cases(int usual) {
  const char* text = std::getenv("BLOCKATTN_CASE_FACTOR");
  return text != nullptr ? usual * std::max(1, std::atoi(text)) : usual;
}

/// A small deterministic source of test data.
class random_source {
 public:
  explicit random_source(std::uint64_t seed) : engine_(seed) {}

  /// An integer in [low, high].
  index_t integer(index_t low, index_t high) {
    return std::uniform_int_distribution<index_t>(low, high)(engine_);
  }
  double real(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  double normal() { return std::normal_distribution<double>()(engine_); }
  bool chance(double probability) { return real(0, 1) < probability; }

  /// `count` standard normal values, rounded to the storage type.
  template <class T>
  std::vector<T> normal_values(index_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) store_scalar(value, normal());
    return values;
  }

  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

}  // namespace blockattn_test

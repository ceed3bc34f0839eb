// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/simd_storage.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

using arch = default_arch;

/// Numbers of every magnitude, half-way cases, subnormals, infinities and NaN.
template <class C>
std::vector<C> awkward_values(random_source& random) {
  std::vector<C> values = {C(0),     C(-0.0),   C(1),          C(65504),      C(65519),  C(65520),
                           C(1e38),  C(-1e38),  C(6e-8),       C(5.9e-8),     C(2.9e-8), C(3e-8),
                           C(1e-40), C(-2e-39), C(1.00390625), C(1.01171875), C(2049),   C(2051)};
  values.push_back(std::numeric_limits<C>::infinity());
  values.push_back(-std::numeric_limits<C>::infinity());
  values.push_back(std::numeric_limits<C>::quiet_NaN());
  for (int i = 0; i < 20000; ++i)
    values.push_back(
        static_cast<C>(std::ldexp(random.real(-1, 1), int(random.integer(-150, 127)))));
  while (values.size() % 16 != 0) values.push_back(C(0));
  return values;
}

}  // namespace

TEMPLATE_TEST_CASE("vectors are stored and loaded as scalars are",
                   "[simd_storage]",
                   float,
                   double,
                   bfloat16,
                   float16) {
  using T = TestType;
  using C = accumulator_t<T>;
  constexpr index_t width = detail::lanes<C, arch>;
  random_source random(test_seed(45));
  const std::vector<C> values = awkward_values<C>(random);
  std::vector<T> stored(values.size() + 1);
  T guard;
  store_scalar(guard, -7.0);
  stored.back() = guard;
  std::vector<C> loaded(values.size());
  for (std::size_t i = 0; i < values.size(); i += static_cast<std::size_t>(width)) {
    detail::store_values<C, arch>(detail::vector<C, arch>::load_unaligned(values.data() + i),
                                  stored.data() + i);
  }
  for (std::size_t i = 0; i < values.size(); i += static_cast<std::size_t>(width))
    detail::load_values<C, arch>(stored.data() + i).store_unaligned(loaded.data() + i);
  CHECK(std::memcmp(&stored.back(), &guard, sizeof(T)) == 0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    CAPTURE(i, values[i]);
    T expected;
    store_scalar(expected, values[i]);
    if (std::isnan(values[i])) {
      REQUIRE(std::isnan(static_cast<C>(load_scalar(stored[i]))));
      REQUIRE(std::isnan(loaded[i]));
    } else {
      REQUIRE(std::memcmp(&stored[i], &expected, sizeof(T)) == 0);
      const auto back = static_cast<C>(load_scalar(expected));
      REQUIRE(std::memcmp(&loaded[i], &back, sizeof(C)) == 0);
    }
  }
}

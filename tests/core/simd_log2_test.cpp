// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/simd_log2.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

template <class C>
using wider = std::conditional_t<std::is_same_v<C, float>, double, long double>;

/// log2_normal of every value; the last vector is filled up with ones.
template <class C>
std::vector<C> log2_of(std::vector<C> x) {
  constexpr auto width = static_cast<std::size_t>(detail::lanes<C, default_arch>);
  const std::size_t count = x.size();
  x.resize((count + width - 1) / width * width, C(1));
  for (std::size_t i = 0; i < x.size(); i += width) {
    const auto values = detail::vector<C, default_arch>::load_unaligned(x.data() + i);
    detail::log2_normal<C, default_arch>(values).store_unaligned(x.data() + i);
  }
  x.resize(count);
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("log2_normal is within two units in the last place", "[simd]", float, double) {
  using C = TestType;
  const std::uint64_t seed = test_seed(17);
  CAPTURE(seed);
  random_source random(seed);
  std::vector<C> x;
  for (int i = 0; i < 100000; ++i) {
    x.push_back(static_cast<C>(std::exp2(random.real(std::numeric_limits<C>::min_exponent, 0))));
    x.push_back(static_cast<C>(std::exp2(random.real(-1, 1))));
    x.push_back(static_cast<C>(1 + random.real(-1e-3, 1e-3)));  // where the logarithm vanishes
  }
  // Around sqrt(1/2) 2^k, where the exponent steps, and at both ends of the range.
  for (int k = std::numeric_limits<C>::min_exponent; k < std::numeric_limits<C>::max_exponent;
       ++k) {
    const C step = std::ldexp(std::sqrt(C(0.5)), k);
    x.insert(x.end(), {std::nextafter(step, C(0)), step, std::nextafter(step, 2 * step)});
  }
  x.insert(x.end(), {std::numeric_limits<C>::min(), std::numeric_limits<C>::max(),
                     std::nextafter(C(1), C(0)), std::nextafter(C(1), C(2))});

  const std::vector<C> found = log2_of(x);
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const wider<C> exact = std::log2(static_cast<wider<C>>(x[i]));
    const auto nearest = std::abs(static_cast<C>(exact));
    const wider<C> ulp =
        static_cast<wider<C>>(nearest) - static_cast<wider<C>>(std::nextafter(nearest, C(0)));
    if (exact == 0) continue;  // whole powers of 2 have a test of their own
    const auto error = static_cast<double>(std::abs(static_cast<wider<C>>(found[i]) - exact) / ulp);
    if (!(error <= largest)) largest = error;
  }
  CHECK(largest <= 2);
}

TEMPLATE_TEST_CASE("log2_normal is exact at powers of 2", "[simd]", float, double) {
  using C = TestType;
  constexpr int smallest = std::numeric_limits<C>::min_exponent - 1;
  std::vector<C> x;
  for (int k = smallest; k < std::numeric_limits<C>::max_exponent; ++k)
    x.push_back(std::ldexp(C(1), k));
  const std::vector<C> found = log2_of(x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    CAPTURE(x[i]);
    CHECK(found[i] == static_cast<C>(smallest + static_cast<int>(i)));
  }
}

TEMPLATE_TEST_CASE("log2_normal is finite below the normal numbers", "[simd]", float, double) {
  using C = TestType;
  constexpr C limit = C(std::numeric_limits<C>::min_exponent - 2);
  const std::vector<C> x = {C(0), std::numeric_limits<C>::denorm_min(),
                            std::numeric_limits<C>::min() / 2};
  for (const C log : log2_of(x)) {
    CHECK(log <= limit + C(1));
    CHECK(log >= limit - C(1));
  }
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/simd.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

using arch = default_arch;

template <class C>
using vector = detail::vector<C, arch>;

template <class C>
constexpr index_t lanes = detail::lanes<C, arch>;

template <class C>
constexpr C infinity = std::numeric_limits<C>::infinity();

template <class C>
using wider = std::conditional_t<std::is_same_v<C, float>, double, long double>;

enum class power { of_2, of_2_by_table, of_e };
constexpr power powers_of_2[] = {power::of_2, power::of_2_by_table};
constexpr power powers[] = {power::of_2, power::of_2_by_table, power::of_e};

/// The power of every value; the last vector is filled up with zeros.
template <class C>
std::vector<C> powers_of(std::vector<C> x, power which) {
  const std::size_t count = x.size();
  x.resize(static_cast<std::size_t>(round_up(static_cast<index_t>(count), lanes<C>)));
  for (std::size_t i = 0; i < x.size(); i += static_cast<std::size_t>(lanes<C>)) {
    const auto exponents = vector<C>::load_unaligned(x.data() + i);
    const vector<C> found = which == power::of_2 ? detail::exp2_nonpositive<C, arch>(exponents)
                            : which == power::of_2_by_table
                                ? detail::exp2_nonpositive_by_table<C, arch>(exponents)
                                : detail::exp_nonpositive<C, arch>(exponents);
    found.store_unaligned(x.data() + i);
  }
  x.resize(count);
  return x;
}

/// Where powers begin to be normal numbers.
template <class C>
C smallest_of(power which) {
  const auto exponent = static_cast<C>(std::numeric_limits<C>::min_exponent - 1);
  if (which != power::of_e) return exponent;
  const wider<C> exact = std::log(static_cast<wider<C>>(std::numeric_limits<C>::min()));
  const auto nearest = static_cast<C>(exact);
  return static_cast<wider<C>>(nearest) < exact ? std::nextafter(nearest, C(0)) : nearest;
}

/// Largest |found - exact| in units in the last place of the exact value.
template <class C>
double largest_ulp_error(const std::vector<C>& x, power which) {
  const std::vector<C> found = powers_of(x, which);
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto exponent = static_cast<wider<C>>(x[i]);
    const wider<C> exact = which == power::of_e ? std::exp(exponent) : std::exp2(exponent);
    const auto nearest = static_cast<C>(exact);
    const wider<C> ulp =
        static_cast<wider<C>>(nearest) - static_cast<wider<C>>(std::nextafter(nearest, C(0)));
    const auto error = static_cast<double>(std::abs(static_cast<wider<C>>(found[i]) - exact) / ulp);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}

}  // namespace

TEMPLATE_TEST_CASE("powers are within an ulp and a half where it counts", "[simd]", float, double) {
  using C = TestType;
  const power which = GENERATE(from_range(std::begin(powers), std::end(powers)));
  const C smallest = smallest_of<C>(which);
  const std::uint64_t seed = test_seed(11);
  CAPTURE(seed, which);
  random_source random(seed);
  std::vector<C> x = {smallest};
  for (int i = 0; i < 200000; ++i) x.push_back(static_cast<C>(random.real(double(smallest), 0)));
  for (int i = 0; i < 100000; ++i) x.push_back(static_cast<C>(random.real(-2, 0)));
  // Around every half and whole number, where the split into whole and fraction changes.
  const C unit = which == power::of_e ? std::numbers::ln2_v<C> : C(1);
  for (C half = 0; half > smallest; half -= unit / 2) {
    x.insert(x.end(), {half, std::nextafter(half, smallest)});
    if (half < 0) x.push_back(std::nextafter(half, C(0)));
  }
  // Rounding of scale * s - max leaves a little above 0.
  for (const C above : {C(1e-7), C(1e-4), C(0.01)}) x.push_back(above);
  // The rest of e^x is x less a multiple of ln 2, which fp32 rounds: 1.9e-9 of up to 126.
  const bool rounds_ln2 = which == power::of_e && std::is_same_v<C, float>;
  CHECK(largest_ulp_error(x, which) <= (rounds_ln2 ? 5 : 1.5));
  std::erase_if(x, [](C value) { return value < -16; });
  CHECK(largest_ulp_error(x, which) <= 1.5);
}

TEMPLATE_TEST_CASE("exp2_nonpositive is exact at whole numbers", "[simd]", float, double) {
  using C = TestType;
  constexpr int smallest = std::numeric_limits<C>::min_exponent - 1;
  std::vector<C> x;
  for (int i = 0; i >= smallest; --i) x.push_back(static_cast<C>(i));
  for (const power which : powers_of_2) {
    const std::vector<C> found = powers_of(x, which);
    for (std::size_t i = 0; i < x.size(); ++i) {
      CAPTURE(x[i]);
      CHECK(found[i] == std::ldexp(C(1), -static_cast<int>(i)));
    }
  }
}

TEMPLATE_TEST_CASE("powers are exactly 0 where a pair is hidden", "[simd]", float, double) {
  using C = TestType;
  const power which = GENERATE(from_range(std::begin(powers), std::end(powers)));
  const C smallest = smallest_of<C>(which);
  const std::vector<C> x = {-infinity<C>,
                            std::numeric_limits<C>::lowest(),
                            C(-1e30),
                            C(4) * smallest,
                            C(2) * smallest,
                            smallest - C(30),
                            smallest - C(1),
                            smallest - C(0.5),
                            std::nextafter(smallest, -infinity<C>)};
  const std::vector<C> found = powers_of(x, which);
  for (std::size_t i = 0; i < x.size(); ++i) {
    CAPTURE(which, x[i]);
    CHECK(found[i] == C(0));
    CHECK_FALSE(std::signbit(found[i]));
  }
}

TEMPLATE_TEST_CASE("fmadd is a * b + c in every lane", "[simd]", float, double) {
  using C = TestType;
  const std::uint64_t seed = test_seed(12);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 200; ++round) {
    const auto a = random.normal_values<C>(lanes<C>);
    const auto b = random.normal_values<C>(lanes<C>);
    const auto c = random.normal_values<C>(lanes<C>);
    std::vector<C> sum(a.size());
    detail::fmadd<C, arch>(vector<C>::load_unaligned(a.data()), vector<C>::load_unaligned(b.data()),
                           vector<C>::load_unaligned(c.data()))
        .store_unaligned(sum.data());
    for (std::size_t i = 0; i < a.size(); ++i) {
      const wider<C> product = static_cast<wider<C>>(a[i]) * static_cast<wider<C>>(b[i]);
      const wider<C> exact = product + static_cast<wider<C>>(c[i]);
      // One rounding of the sum; without FMA also one of the product.
      const auto bound = static_cast<double>(std::abs(exact) + std::abs(product)) *
                         static_cast<double>(std::numeric_limits<C>::epsilon());
      CAPTURE(i, a[i], b[i], c[i]);
      CHECK(static_cast<double>(std::abs(static_cast<wider<C>>(sum[i]) - exact)) <= bound);
    }
  }
}

TEMPLATE_TEST_CASE("reduce_add counts every lane once", "[simd]", float, double) {
  using C = TestType;
  for (index_t lane = 0; lane < lanes<C>; ++lane) {
    std::vector<C> values(static_cast<std::size_t>(lanes<C>), C(1));
    values[static_cast<std::size_t>(lane)] = C(1000);
    CAPTURE(lane);
    CHECK(detail::reduce_add<C, arch>(vector<C>::load_unaligned(values.data())) ==
          static_cast<C>(999 + lanes<C>));
  }
}

TEMPLATE_TEST_CASE("reduce_add_each sums every vector on its own", "[simd]", float, double) {
  using C = TestType;
  const auto check = [](auto count) {
    constexpr int vectors = count;
    std::vector<C> values;
    vector<C> x[std::size_t{vectors}];
    for (int i = 0; i < vectors; ++i) {
      values.assign(static_cast<std::size_t>(lanes<C>), static_cast<C>(i));
      values[static_cast<std::size_t>(i % lanes<C>)] = static_cast<C>(1000 * i);
      x[i] = vector<C>::load_unaligned(values.data());
    }
    std::vector<C> totals(vectors + 1, C(-7));
    detail::reduce_add_each<vectors, C, arch>(x, totals.data());
    CHECK(totals.back() == C(-7));
    for (int i = 0; i < vectors; ++i) {
      CAPTURE(vectors, i);
      CHECK(totals[static_cast<std::size_t>(i)] == static_cast<C>(i * (999 + lanes<C>)));
    }
  };
  check(std::integral_constant<int, 1>{});
  check(std::integral_constant<int, 2>{});
  check(std::integral_constant<int, 3>{});
  check(std::integral_constant<int, 4>{});
  check(std::integral_constant<int, 8>{});
  check(std::integral_constant<int, 12>{});
  check(std::integral_constant<int, 16>{});
}

TEMPLATE_TEST_CASE("reduce_max finds the largest wherever it is", "[simd]", float, double) {
  using C = TestType;
  for (index_t lane = 0; lane < lanes<C>; ++lane) {
    CAPTURE(lane);
    std::vector<C> values(static_cast<std::size_t>(lanes<C>), -infinity<C>);
    values[static_cast<std::size_t>(lane)] = C(-3);
    CHECK(detail::reduce_max<C, arch>(vector<C>::load_unaligned(values.data())) == C(-3));
  }
  CHECK(detail::reduce_max<C, arch>(vector<C>(-infinity<C>)) == -infinity<C>);
}

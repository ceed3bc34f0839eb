// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/convert.hpp>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

using arch = cpu::default_arch;

/// The value of 16 bits by the definition of the format.
double value_of(storage_format format, std::uint16_t bits) {
  const int mantissa_bits = format == storage_format::bf16 ? 7 : 10;
  const int bias = format == storage_format::bf16 ? 127 : 15;
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 2 * bias + 1)
    return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

bool same_value(float found, double expected) {
  if (std::isnan(expected)) return std::isnan(found);
  return static_cast<double>(found) == expected && std::signbit(found) == std::signbit(expected);
}

template <class T>
std::vector<T> every_pattern() {
  std::vector<T> patterns(65536);
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    patterns[i].bits = static_cast<std::uint16_t>(i);
  }
  return patterns;
}

}  // namespace

TEMPLATE_TEST_CASE("every 16-bit pattern loads as its value", "[convert]", bfloat16, float16) {
  const auto patterns = every_pattern<TestType>();
  constexpr index_t width = cpu::detail::lanes<float, arch>;
  std::vector<float> loaded(patterns.size());
  for (std::size_t i = 0; i < patterns.size(); i += static_cast<std::size_t>(width)) {
    cpu::detail::load_values<float, arch>(patterns.data() + i).store_unaligned(loaded.data() + i);
  }
  std::size_t wrong = 0;
  std::size_t first_wrong = 0;
  for (std::size_t i = loaded.size(); i-- > 0;) {
    if (same_value(loaded[i], value_of(format_of<TestType>, static_cast<std::uint16_t>(i))))
      continue;
    ++wrong;
    first_wrong = i;
  }
  CAPTURE(first_wrong, loaded[first_wrong]);
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("every 16-bit pattern survives load_row and store_row",
                   "[convert]",
                   bfloat16,
                   float16) {
  const auto patterns = every_pattern<TestType>();
  std::vector<float> row(patterns.size());
  cpu::detail::load_row<arch>(patterns.data(), static_cast<index_t>(patterns.size()), 1.0F,
                              row.data());
  std::vector<TestType> stored(patterns.size());
  cpu::detail::store_row<arch>(row.data(), static_cast<index_t>(patterns.size()), 1.0F,
                               stored.data());
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    const bool nan = std::isnan(value_of(format_of<TestType>, patterns[i].bits));
    const bool kept = nan ? std::isnan(value_of(format_of<TestType>, stored[i].bits))
                          : stored[i].bits == patterns[i].bits;
    if (!kept) ++wrong;
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("load_row multiplies, stays inside its row and needs no alignment",
                   "[convert]",
                   float,
                   double,
                   bfloat16,
                   float16) {
  using C = accumulator_t<TestType>;
  constexpr index_t width = cpu::detail::lanes<C, arch>;
  const std::uint64_t seed = test_seed(21);
  CAPTURE(seed);
  random_source random(seed);
  for (index_t count = 0; count <= 2 * width + 1; ++count) {
    for (const C factor : {C(1), C(-1), C(0.5)}) {
      CAPTURE(count, factor);
      auto in = random.normal_values<TestType>(count + 2);
      store_scalar(in.front(), std::numeric_limits<C>::quiet_NaN());
      store_scalar(in.back(), std::numeric_limits<C>::quiet_NaN());
      std::vector<C> out(static_cast<std::size_t>(count) + 2, C(77));
      cpu::detail::load_row<arch>(in.data() + 1, count, factor, out.data() + 1);
      CHECK(out.front() == C(77));
      CHECK(out.back() == C(77));
      for (std::size_t i = 1; i <= static_cast<std::size_t>(count); ++i) {
        CHECK(out[i] == factor * static_cast<C>(load_scalar(in[i])));
      }
    }
  }
}

TEMPLATE_TEST_CASE("store_row multiplies and rounds once to nearest even",
                   "[convert]",
                   float,
                   double,
                   bfloat16,
                   float16) {
  using C = accumulator_t<TestType>;
  const std::uint64_t seed = test_seed(22);
  CAPTURE(seed);
  random_source random(seed);
  for (index_t count = 0; count <= 40; ++count) {
    const auto in = random.normal_values<C>(count);
    std::vector<TestType> out(static_cast<std::size_t>(count) + 1);
    store_scalar(out.back(), C(77));
    cpu::detail::store_row<arch>(in.data(), count, C(0.25), out.data());
    CHECK(static_cast<C>(load_scalar(out.back())) == C(77));
    for (std::size_t i = 0; i < in.size(); ++i) {
      const C value = C(0.25) * in[i];
      const C stored = static_cast<C>(load_scalar(out[i]));
      if constexpr (std::is_same_v<TestType, C>) {
        CHECK(stored == value);
      } else {
        // No neighbour in the storage format is nearer.
        for (const int step : {-1, 1}) {
          TestType neighbour = out[i];
          neighbour.bits = static_cast<std::uint16_t>(neighbour.bits + step);
          CHECK(std::abs(stored - value) <=
                std::abs(static_cast<C>(load_scalar(neighbour)) - value));
        }
      }
    }
  }
  // Ties go to the even neighbour: 1 + 1 ulp / 2 and 1 + 3 ulp / 2.
  if constexpr (sizeof(TestType) == 2) {
    const C ulp = format_of<TestType> == storage_format::bf16 ? C(0x1p-7) : C(0x1p-10);
    const C ties[] = {C(1) + ulp / 2, C(1) + 3 * ulp / 2};
    TestType out[2];
    cpu::detail::store_row<arch>(ties, index_t{2}, C(1), out);
    CHECK(static_cast<C>(load_scalar(out[0])) == C(1));
    CHECK(static_cast<C>(load_scalar(out[1])) == C(1) + 2 * ulp);
  }
}

TEMPLATE_TEST_CASE(
    "store_row adds to what stands there", "[convert]", float, double, bfloat16, float16) {
  using C = accumulator_t<TestType>;
  const C in[] = {C(4), C(-8), std::numeric_limits<C>::quiet_NaN()};
  TestType out[4];
  for (TestType& value : out) store_scalar(value, C(0.5));
  constexpr auto add = cpu::detail::accumulate_mode::add;
  cpu::detail::store_row<arch>(in, index_t{2}, C(0.25), out, add);
  cpu::detail::store_row<arch>(in + 2, index_t{1}, C(0), out + 2, add);
  const C expected[] = {C(1.5), C(-1.5), C(0.5), C(0.5)};
  for (std::size_t i = 0; i < 4; ++i) CHECK(static_cast<C>(load_scalar(out[i])) == expected[i]);
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <blockattn/core/storage.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

struct engine_half {
  std::uint16_t bits;
};
struct not_a_scalar {};

}  // namespace

template <>
struct blockattn::storage_traits<engine_half> {
  static constexpr storage_format format = storage_format::fp16;
};

namespace {

static_assert(storage_scalar<float> && storage_scalar<const float> && storage_scalar<double>);
static_assert(storage_scalar<bfloat16> && storage_scalar<float16>);
static_assert(storage_scalar<Eigen::bfloat16> && storage_scalar<const Eigen::half>);
static_assert(storage_scalar<engine_half>);
#ifdef __FLT16_MAX__
static_assert(format_of<blockattn::detail::native_float16> == storage_format::fp16);
#endif
static_assert(!storage_scalar<int> && !storage_scalar<std::uint16_t> && !storage_scalar<bool>);
static_assert(!storage_scalar<long double> && !storage_scalar<not_a_scalar>);

static_assert(format_of<const bfloat16> == storage_format::bf16);
static_assert(format_of<Eigen::half> == storage_format::fp16);

static_assert(std::is_same_v<accumulator_t<float>, float>);
static_assert(std::is_same_v<accumulator_t<double, const double>, double>);
static_assert(std::is_same_v<accumulator_t<Eigen::half, float, bfloat16, const float16>, float>);

/// A 16-bit format described by its field widths: an independent, slow model of the conversions.
struct small_format {
  int exponent_bits;
  int fraction_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  std::uint16_t infinity() const {
    return static_cast<std::uint16_t>(((1 << exponent_bits) - 1) << fraction_bits);
  }

  /// The exact value of a non-negative pattern. Infinity's pattern counts as the power of two that
  /// follows the largest finite value, which is what rounding compares with.
  double value(std::uint16_t magnitude) const {
    const int exponent = magnitude >> fraction_bits;
    const int fraction = magnitude & ((1 << fraction_bits) - 1);
    if (exponent == 0) return std::ldexp(fraction, 1 - bias() - fraction_bits);
    return std::ldexp((1 << fraction_bits) + fraction, exponent - bias() - fraction_bits);
  }

  /// Nearest, ties to the even pattern, by searching the whole table of values.
  std::uint16_t rounded(float exact) const {
    const int sign = std::signbit(exact) ? 0x8000 : 0;
    const double magnitude = std::fabs(static_cast<double>(exact));
    int low = 0;
    int high = infinity();
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (value(static_cast<std::uint16_t>(middle)) <= magnitude ? low : high) = middle;
    }
    const double below = magnitude - value(static_cast<std::uint16_t>(low));
    const double above = value(static_cast<std::uint16_t>(high)) - magnitude;
    const bool up = below > above || (below == above && low % 2 != 0);
    return static_cast<std::uint16_t>(sign | (up ? high : low));
  }
};

constexpr small_format fp16_format{.exponent_bits = 5, .fraction_bits = 10};
constexpr small_format bf16_format{.exponent_bits = 8, .fraction_bits = 7};

template <class T>
constexpr small_format model_of() {
  return format_of<T> == storage_format::fp16 ? fp16_format : bf16_format;
}

template <class T>
T from_bits(int bits) {
  return std::bit_cast<T>(static_cast<std::uint16_t>(bits));
}

template <class T>
std::uint16_t stored_bits(float value) {
  T stored = from_bits<T>(0);
  store_scalar(stored, value);
  return std::bit_cast<std::uint16_t>(stored);
}

/// fp32 values that are hard to round: for each pair of neighbours the middle and both sides of it,
/// the values themselves with both sides, and 200,000 random bit patterns.
template <class T>
std::vector<float> hard_values(random_source& random) {
  const small_format model = model_of<T>();
  std::vector<float> values;
  const auto add_around = [&values](double exact) {
    const auto center = static_cast<float>(exact);
    values.push_back(center);
    values.push_back(std::nextafterf(center, std::numeric_limits<float>::infinity()));
    values.push_back(std::nextafterf(center, 0.0F));
  };
  for (int bits = 0; bits < model.infinity(); ++bits) {
    const double low = model.value(static_cast<std::uint16_t>(bits));
    const double high = model.value(static_cast<std::uint16_t>(bits + 1));
    add_around(low);
    add_around(low + (high - low) / 2);
  }
  values.push_back(std::numeric_limits<float>::max());
  values.push_back(std::numeric_limits<float>::denorm_min());
  values.push_back(std::numeric_limits<float>::infinity());
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random.integer(0, 0xffffffffLL));
    if (!std::isnan(std::bit_cast<float>(bits))) values.push_back(std::bit_cast<float>(bits));
  }
  const std::size_t count = values.size();
  for (std::size_t i = 0; i < count; ++i) values.push_back(-values[i]);
  return values;
}

}  // namespace

TEMPLATE_TEST_CASE("load_scalar is exact for all 65536 patterns and store_scalar inverts it",
                   "",
                   bfloat16,
                   float16,
                   Eigen::bfloat16,
                   Eigen::half,
                   engine_half) {
  const small_format model = model_of<TestType>();
  int wrong = 0;
  int first_wrong = -1;
  for (int bits = 0; bits < 65536; ++bits) {
    const float loaded = load_scalar(from_bits<const TestType>(bits));
    const std::uint16_t stored = stored_bits<TestType>(loaded);
    const auto magnitude = static_cast<std::uint16_t>(bits & 0x7fff);
    bool right = std::signbit(loaded) == (bits >= 0x8000);
    if (magnitude > model.infinity()) {
      right = right && std::isnan(loaded) && (stored & 0x7fff) > model.infinity() &&
              (stored & 0x8000) == (bits & 0x8000);
    } else {
      const double expected = magnitude == model.infinity()
                                  ? std::numeric_limits<double>::infinity()
                                  : model.value(magnitude);
      right = right && std::fabs(static_cast<double>(loaded)) == expected && stored == bits;
    }
    if (!right && wrong++ == 0) first_wrong = bits;
  }
  CAPTURE(first_wrong);
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("store_scalar rounds to nearest even", "", bfloat16, float16) {
  const std::uint64_t seed = test_seed(20240611);
  CAPTURE(seed);
  random_source random(seed);
  const small_format model = model_of<TestType>();
  int wrong = 0;
  float first_wrong = 0;
  for (const float value : hard_values<TestType>(random)) {
    if (stored_bits<TestType>(value) != model.rounded(value) && wrong++ == 0) first_wrong = value;
  }
  CAPTURE(first_wrong);
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("conversions agree with Eigen's", "", Eigen::bfloat16, Eigen::half) {
  const std::uint64_t seed = test_seed(20240612);
  CAPTURE(seed);
  random_source random(seed);
  int wrong = 0;
  for (int bits = 0; bits < 65536; ++bits) {
    const auto stored = from_bits<TestType>(bits);
    const float ours = load_scalar(stored);
    const auto theirs = static_cast<float>(stored);
    const bool same = std::isnan(theirs) ? std::isnan(ours)
                                         : std::bit_cast<std::uint32_t>(ours) ==
                                               std::bit_cast<std::uint32_t>(theirs);
    if (!same) ++wrong;
  }
  CHECK(wrong == 0);
  float first_wrong = 0;
  for (const float value : hard_values<TestType>(random)) {
    const bool same = stored_bits<TestType>(value) == std::bit_cast<std::uint16_t>(TestType(value));
    if (!same && wrong++ == 0) first_wrong = value;
  }
  CAPTURE(first_wrong);
  CHECK(wrong == 0);
}

TEST_CASE("a NaN whose payload is lost by narrowing stays a NaN") {
  for (const std::uint32_t bits : {0x7f800001U, 0xff800001U, 0x7fffffffU, 0xffc00000U}) {
    CAPTURE(bits);
    const auto nan = std::bit_cast<float>(bits);
    CHECK(std::isnan(load_scalar(from_bits<bfloat16>(stored_bits<bfloat16>(nan)))));
    CHECK(std::isnan(load_scalar(from_bits<float16>(stored_bits<float16>(nan)))));
  }
}

TEST_CASE("fp32 and fp64 are loaded and stored as they are") {
  float narrow = 0;
  store_scalar(narrow, 0.1F);
  CHECK(load_scalar(narrow) == 0.1F);
  store_scalar(narrow, 0.1);
  CHECK(narrow == 0.1F);
  double wide = 0;
  store_scalar(wide, 0.1);
  CHECK(load_scalar(wide) == 0.1);
  static_assert(std::is_same_v<decltype(load_scalar(wide)), double>);
  static_assert(std::is_same_v<decltype(load_scalar(narrow)), float>);
}

TEST_CASE("halves that are stored as plain integers are read by their name") {
  std::uint16_t bits[2] = {0x3c00, 0x3f80};  // 1 as fp16, 1 as bf16
  CHECK(load_scalar(*as_float16(bits)) == 1.0F);
  CHECK(load_scalar(*as_bfloat16(bits + 1)) == 1.0F);
  const std::uint16_t* const constant = bits;
  CHECK(load_scalar(as_float16(constant)[0]) == 1.0F);
  CHECK(load_scalar(as_bfloat16(constant)[1]) == 1.0F);
  store_scalar(*as_float16(bits), -2.0F);
  store_scalar(as_bfloat16(bits)[1], -2.0F);
  CHECK(bits[0] == 0xc000);
  CHECK(bits[1] == 0xc000);
}

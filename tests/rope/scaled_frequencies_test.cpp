// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/rope/scaled_frequencies.hpp>
#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/rope_variants.hpp"

namespace blockattn_test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

void check_frequencies(const rope_options& options, const std::vector<double>& expected) {
  const rope rotation(options);
  REQUIRE(rotation.frequencies().size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i, rotation.frequencies()[i], expected[i]);
    CHECK(std::abs(rotation.frequencies()[i] - expected[i]) <= 1e-14 * expected[i]);
  }
}

}  // namespace

// The numbers below come from the formulas of transformers' modeling_rope_utils, evaluated in fp64
// by a separate program.

TEST_CASE("Plain frequencies are powers of theta over the rotary part", "[rope]") {
  check_frequencies({.head_dim = 8}, {1, 0.1, 0.01, 0.001});
  check_frequencies({.head_dim = 4, .theta = 1e6}, {1, 1e-3});
  check_frequencies({.head_dim = 128, .rotary_dim = 8}, {1, 0.1, 0.01, 0.001});
  check_frequencies({.head_dim = 8, .rotary_dim = 0}, {});
}

TEST_CASE("Linear scaling divides every frequency", "[rope]") {
  check_frequencies({.head_dim = 8, .scaling = linear_rope_scaling{.factor = 4}},
                    {0.25, 0.025, 0.0025, 0.00025});
}

TEST_CASE("NTK scaling keeps the first frequency and divides the last by the factor", "[rope]") {
  check_frequencies(
      {.head_dim = 16, .scaling = ntk_rope_scaling{.factor = 4}},
      {1.0, 0.2594128170149228, 0.0672950096316178, 0.017457188019584336, 0.004528618321319533,
       0.0011747816359188909, 0.00030475341355111886, 7.905694150420948e-05});
}

TEST_CASE("YaRN keeps fast pairs, divides slow ones and ramps between", "[rope]") {
  const rope_options options = {
      .head_dim = 16, .scaling = yarn_rope_scaling{.factor = 4, .original_context = 4096}};
  check_frequencies(options, {1.0, 0.31622776601683794, 0.1, 0.02569350598886808, 0.00625,
                              0.0013834964763236657, 0.00025, 7.905694150420948e-05});
  CHECK(std::abs(rope(options).attention_factor() - 1.138629436111989) < 1e-15);
}

TEST_CASE("YaRN's ramp may end beyond the last pair", "[rope]") {
  // From pair 2 to pair 5 of 4.
  check_frequencies(
      {.head_dim = 8, .scaling = yarn_rope_scaling{.factor = 4, .original_context = 1e5}},
      {1.0, 0.1, 0.01, 0.00075});
}

TEST_CASE("YaRN's attention factor can be overridden and is 1 at factor 1", "[rope]") {
  const auto factor = [](double scale, std::optional<double> given) {
    return rope({.head_dim = 8,
                 .scaling = yarn_rope_scaling{.factor = scale, .original_context = 4096},
                 .attention_factor = given})
        .attention_factor();
  };
  CHECK(factor(1, std::nullopt) == 1.0);
  CHECK(factor(4, 1.0) == 1.0);
  CHECK(factor(4, 0.5) == 0.5);
}

TEST_CASE("YaRN with an empty ramp splits at one pair", "[rope]") {
  // Both ends clamp to pair 0 in a context that no pair turns in even once.
  check_frequencies(
      {.head_dim = 8, .scaling = yarn_rope_scaling{.factor = 2, .original_context = 1}},
      {1, 0.05, 0.005, 0.0005});
}

TEST_CASE("Llama 3 scaling divides long wavelengths only", "[rope]") {
  check_frequencies(
      {.head_dim = 16, .theta = 5e5, .scaling = llama3_rope_scaling{}},
      {1.0, 0.19392274474868576, 0.03760603093086393, 0.0072926647372171085, 0.0005248461609929547,
       3.428102195952591e-05, 6.647869871181236e-06, 1.2891731721515574e-06});
}

TEST_CASE("A factor of 1 scales nothing", "[rope]") {
  const std::vector<double> plain = {1, 0.1, 0.01, 0.001};
  check_frequencies({.head_dim = 8, .scaling = linear_rope_scaling{.factor = 1}}, plain);
  check_frequencies({.head_dim = 8, .scaling = ntk_rope_scaling{.factor = 1}}, plain);
  check_frequencies(
      {.head_dim = 8, .scaling = yarn_rope_scaling{.factor = 1, .original_context = 100}}, plain);
  check_frequencies({.head_dim = 8, .scaling = llama3_rope_scaling{.factor = 1}}, plain);
}

TEST_CASE("Explicit frequencies and divisors are taken as they are, then scaled", "[rope]") {
  const std::vector<double> frequencies = {3, 0.5, 0};
  const std::vector<double> divisors = {1, 2, 8};
  check_frequencies({.head_dim = 6, .frequencies = frequencies}, frequencies);
  check_frequencies({.head_dim = 6, .frequencies = frequencies, .frequency_divisors = divisors},
                    {3, 0.25, 0});
  check_frequencies({.head_dim = 6, .theta = 1000.0, .frequency_divisors = divisors},
                    {1, 0.05, 0.00125});
  check_frequencies({.head_dim = 6,
                     .theta = 1000.0,
                     .frequency_divisors = divisors,
                     .scaling = linear_rope_scaling{.factor = 5}},
                    {0.2, 0.01, 0.00025});
  // A divided frequency is what Llama 3 scaling classifies: 1/8 of the rest is left.
  check_frequencies({.head_dim = 6,
                     .frequencies = std::vector<double>{1, 1, 1},
                     .frequency_divisors = std::vector<double>{1, 1e4, 1e6},
                     .scaling = llama3_rope_scaling{}},
                    {1, 1e-4 / 8, 1e-6 / 8});
}

TEST_CASE("Scaling options outside their limits are refused by name", "[rope]") {
  const std::vector<double> two = {1, 0.5};
  const std::vector<double> negative = {1, -0.5, 1, 1};
  const std::vector<double> zero = {1, 1, 0, 1};
  const std::vector<double> tiny = {1, 1, 1, std::numeric_limits<double>::denorm_min()};
  const auto make = [](rope_options options) {
    options.head_dim = 8;
    return rope(options);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(make({.theta = 1.0}), contains("theta is 1"));
  CHECK_THROWS_WITH(make({.theta = nan}), contains("theta is nan"));
  CHECK_THROWS_WITH(make({.frequencies = two}), contains("2 frequencies for 4 pairs"));
  CHECK_THROWS_WITH(make({.frequency_divisors = two}),
                    contains("2 frequency_divisors for 4 pairs"));
  CHECK_THROWS_WITH(make({.frequencies = negative}), contains("frequencies[1] is -0.5"));
  CHECK_THROWS_WITH(make({.frequency_divisors = zero}), contains("frequency_divisors[2] is 0"));
  CHECK_THROWS_WITH(make({.frequency_divisors = tiny}), contains("frequencies[3] is inf"));
  CHECK_THROWS_WITH(make({.theta = 1e4, .frequencies = zero}), contains("both theta and freq"));
  CHECK_THROWS_WITH(make({.scaling = linear_rope_scaling{.factor = 0.5}}),
                    contains("linear factor is 0.5"));
  CHECK_THROWS_WITH(make({.scaling = ntk_rope_scaling{.factor = infinity}}),
                    contains("NTK factor is inf"));
  CHECK_THROWS_WITH(
      make({.scaling = ntk_rope_scaling{.factor = 1e300}}),
      contains("NTK factor 1e+300 turns theta 10000 into a number that is not finite"));
  CHECK_THROWS_WITH(make({.frequencies = zero, .scaling = ntk_rope_scaling{.factor = 2}}),
                    contains("NTK scaling is defined by theta"));
  CHECK_THROWS_WITH(rope({.head_dim = 2, .scaling = ntk_rope_scaling{.factor = 2}}),
                    contains("rotary_dim > 2"));
  CHECK_THROWS_WITH(make({.scaling = yarn_rope_scaling{.factor = 2}}),
                    contains("YaRN original_context is 0"));
  CHECK_THROWS_WITH(make({.scaling = yarn_rope_scaling{.factor = 0, .original_context = 8}}),
                    contains("YaRN factor is 0"));
  CHECK_THROWS_WITH(
      make({.scaling = yarn_rope_scaling{.factor = 2, .original_context = 8, .beta_fast = 1}}),
      contains("beta_fast is 1"));
  CHECK_THROWS_WITH(
      make({.frequencies = zero, .scaling = yarn_rope_scaling{.factor = 2, .original_context = 8}}),
      contains("YaRN scaling is defined by theta"));
  CHECK_THROWS_WITH(make({.scaling = llama3_rope_scaling{.high_freq_factor = 1}}),
                    contains("high_freq_factor 1"));
  CHECK_THROWS_WITH(make({.scaling = llama3_rope_scaling{.original_context = -1}}),
                    contains("Llama 3 original_context is -1"));
  CHECK_THROWS_WITH(make({.scaling = llama3_rope_scaling{.factor = nan}}),
                    contains("Llama 3 factor is nan"));
  CHECK_THROWS_WITH(make({.attention_factor = 0.0}), contains("attention_factor is 0"));
}

}  // namespace blockattn_test

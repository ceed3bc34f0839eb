// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/rope/reposition.hpp>
#include <blockattn/rope/rotate_backward.hpp>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/hostile_tensor.hpp"
#include "support/random.hpp"
#include "support/rope_variants.hpp"
#include "support/unit_roundoff.hpp"

namespace blockattn_test {
namespace {

constexpr index_t tokens = 4;
constexpr index_t heads = 2;

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// f(rows) of a (tokens, heads, head_dim) buffer, in place.
template <class F>
std::vector<double> after(const rope& rotation, std::vector<double> values, const F& f) {
  f(token_major(values.data(), tokens, heads, rotation.head_dim()));
  return values;
}

}  // namespace

TEST_CASE("<R x, y> = <x, R^T y>, and the same for reposition by -delta", "[rope]") {
  const std::uint64_t seed = test_seed(10);
  CAPTURE(seed);
  random_source random(seed);
  for (const named_rope& variant : rope_variants()) {
    CAPTURE(variant.name);
    const rope& rotation = variant.rotation;  // a lambda cannot capture a structured binding
    const auto x = random.normal_values<double>(tokens * heads * rotation.head_dim());
    const auto y = random.normal_values<double>(tokens * heads * rotation.head_dim());
    std::vector<double> positions = {0, -3.5, 16777217, 0x1p40 + 1};
    std::shuffle(positions.begin(), positions.end(), random.engine());
    const auto rx = after(rotation, x, [&](auto rows) { rotate(rotation, rows, positions); });
    const auto ry =
        after(rotation, y, [&](auto rows) { rotate_backward(rotation, rows, positions); });
    CHECK(std::abs(dot(rx, y) - dot(x, ry)) < 1e-11);

    std::vector<double> back = positions;
    for (double& delta : back) delta = -delta;
    const auto ux = after(rotation, x, [&](auto rows) { reposition(rotation, rows, positions); });
    const auto uy = after(rotation, y, [&](auto rows) { reposition(rotation, rows, back); });
    CHECK(std::abs(dot(ux, y) - dot(x, uy)) < 1e-11);
    const auto one = after(rotation, x, [&](auto rows) { reposition(rotation, rows, 12.25); });
    const auto two = after(rotation, y, [&](auto rows) { reposition(rotation, rows, -12.25); });
    CHECK(std::abs(dot(one, y) - dot(x, two)) < 1e-11);

    // R^T R = m^2 on the rotary values, 1 on the others.
    const auto round_trip =
        after(rotation, rx, [&](auto rows) { rotate_backward(rotation, rows, positions); });
    const double m = rotation.attention_factor();
    const auto dim = static_cast<std::size_t>(rotation.head_dim());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const bool turns = static_cast<index_t>(i % dim) < rotation.rotary_dim();
      REQUIRE(std::abs(round_trip[i] - (turns ? m * m : 1) * x[i]) < 1e-13);
    }
  }
}

TEST_CASE("rotate_backward agrees with finite differences", "[rope]") {
  const std::uint64_t seed = test_seed(11);
  CAPTURE(seed);
  random_source random(seed);
  for (const named_rope& variant : rope_variants()) {
    CAPTURE(variant.name);
    const rope& rotation = variant.rotation;
    const auto x = random.normal_values<double>(tokens * heads * rotation.head_dim());
    const auto y = random.normal_values<double>(tokens * heads * rotation.head_dim());
    const std::vector<double> positions = {0, 5, -7.25, 1e6};
    // The loss sum(sin(R x) y) has the gradient R^T (cos(R x) y).
    const auto loss = [&](const std::vector<double>& at) {
      auto rx = after(rotation, at, [&](auto rows) { rotate(rotation, rows, positions); });
      for (double& value : rx) value = std::sin(value);
      return dot(rx, y);
    };
    auto d_out = after(rotation, x, [&](auto rows) { rotate(rotation, rows, positions); });
    for (std::size_t i = 0; i < d_out.size(); ++i) d_out[i] = std::cos(d_out[i]) * y[i];
    const auto gradient =
        after(rotation, d_out, [&](auto rows) { rotate_backward(rotation, rows, positions); });
    for (std::size_t i = 0; i < x.size(); i += 3) {
      const double step = 1e-5;
      auto up = x, down = x;
      up[i] += step;
      down[i] -= step;
      REQUIRE(std::abs((loss(up) - loss(down)) / (2 * step) - gradient[i]) < 1e-7);
    }
  }
}

TEST_CASE("rotate_backward of mixed storage between hostile tensors", "[rope]") {
  const std::uint64_t seed = test_seed(12);
  CAPTURE(seed);
  random_source random(seed);
  for (const named_rope& variant : rope_variants()) {
    const rope& rotation = variant.rotation;
    const index_t dim = rotation.head_dim();
    CAPTURE(variant.name);
    hostile_tensor<float> d_out(tokens, heads, dim, random_tensor_layout(random));
    hostile_tensor<bfloat16> d_in(tokens, heads, dim, random_tensor_layout(random));
    d_out.fill_normal(random, 1, [](index_t) { return true; });
    const std::vector<double> positions = {3, 1, 1, -100};
    rotate_backward(rotation, d_out.view(), d_in.view(), positions);
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t h = 0; h < heads; ++h) {
        const float* const row = d_out.view().row(t, h);
        const auto expected = rotated_by_definition(rotation, {row, row + dim},
                                                    -positions[static_cast<std::size_t>(t)],
                                                    rotation.attention_factor());
        for (index_t i = 0; i < dim; ++i) {
          const double exact = expected[static_cast<std::size_t>(i)];
          REQUIRE(std::abs(static_cast<double>(load_scalar(d_in.view().row(t, h)[i])) - exact) <=
                  unit_roundoff<bfloat16>() * std::abs(exact) + 1e-5);
        }
      }
    }
    CHECK(d_in.margins_untouched());
    CHECK(d_out.margins_untouched());
  }
}

TEST_CASE("rotate_backward refuses what rotate refuses, under its own names", "[rope]") {
  const rope rotation({.head_dim = 4});
  std::vector<float> data(16, 1.0F);
  const auto rows = token_major(data.data(), 2, 2, 4);
  const std::vector<double> two = {1, 2};
  CHECK_THROWS_WITH(rotate_backward(rotation, rows, std::vector<double>{1}),
                    contains("rotate_backward: 1 positions for 2 tokens"));
  CHECK_THROWS_WITH(rotate_backward(rotation, rows, token_major(data.data(), 2, 1, 4), two),
                    contains("d_out is (2, 2, 4) but d_in is (2, 1, 4)"));
  CHECK_THROWS_WITH(rotate_backward(rotation, token_major(data.data(), 2, 1, 8), two),
                    contains("rows have head_dim 8"));
  CHECK_THROWS_WITH(
      rotate_backward(rotation, rows, heads_view<float>{data.data(), 2, 2, 4, 0, 4}, two),
      contains("rows of d_in overlap"));
  CHECK_THROWS_WITH(
      rotate_backward(rotation, rows,
                      std::vector<double>{1, std::numeric_limits<double>::infinity()}),
      contains("positions[1] is"));
  CHECK(data == std::vector<float>(16, 1.0F));
  CHECK_NOTHROW(
      rotate_backward(rotation, token_major<float>(nullptr, 0, 2, 4), std::vector<double>{}));
}

}  // namespace blockattn_test

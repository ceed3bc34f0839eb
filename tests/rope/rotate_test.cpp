// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/rope/rotate.hpp>
#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"
#include "support/rope_variants.hpp"

namespace blockattn_test {
namespace {

std::vector<double> values_of(const double* row, index_t count) { return {row, row + count}; }

/// Half the distance between neighbours of 1 in the format.
template <class T>
constexpr double unit_roundoff = format_of<T> == storage_format::fp64   ? 0x1p-53
                                 : format_of<T> == storage_format::fp32 ? 0x1p-24
                                 : format_of<T> == storage_format::fp16 ? 0x1p-11
                                                                        : 0x1p-8;

/// rotate against the definition in long double: each output value is off by at most one rounding
/// to Out and a few of the arithmetic.
template <class In, class Out>
void check_accuracy(const rope& rotation, random_source& random) {
  const index_t tokens = 5, heads = 3, dim = rotation.head_dim();
  const auto in = random.normal_values<In>(tokens * heads * dim);
  std::vector<Out> out(in.size());
  const std::vector<double> positions = {0, 1, -3.5, 16777217, 0x1p40 + 1};
  rotate(rotation, token_major(in.data(), tokens, heads, dim),
         head_major(out.data(), tokens, heads, dim), positions);
  const auto written = head_major(out.data(), tokens, heads, dim);
  using C = accumulator_t<In, Out>;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      std::vector<double> row;
      for (index_t i = 0; i < dim; ++i)
        row.push_back(load_scalar(in[static_cast<std::size_t>((t * heads + h) * dim + i)]));
      const auto expected = rotated_by_definition(
          rotation, row, positions[static_cast<std::size_t>(t)], rotation.attention_factor());
      for (index_t i = 0; i < dim; ++i) {
        const double exact = expected[static_cast<std::size_t>(i)];
        const double actual = load_scalar(written.row(t, h)[i]);
        const double largest_term = 4 * 1.2;  // normal values times m
        CAPTURE(t, h, i, exact, actual);
        CHECK(std::abs(actual - exact) <=
              unit_roundoff<Out> * std::abs(exact) + 4 * unit_roundoff<C> * largest_term + 0x1p-25);
      }
    }
  }
}

}  // namespace

TEST_CASE("rotate is the definition, for every variant and storage", "[rope]") {
  const std::uint64_t seed = test_seed(5);
  CAPTURE(seed);
  random_source random(seed);
  for (const auto& [name, rotation] : rope_variants()) {
    CAPTURE(name);
    check_accuracy<float, float>(rotation, random);
    check_accuracy<float, bfloat16>(rotation, random);
    check_accuracy<bfloat16, float16>(rotation, random);
  }
}

TEST_CASE("fp64 rotation: norm, relative positions, untouched tail, adjoint", "[rope]") {
  const std::uint64_t seed = test_seed(6);
  CAPTURE(seed);
  random_source random(seed);
  for (const named_rope& variant : rope_variants()) {
    CAPTURE(variant.name);
    const rope& rotation = variant.rotation;  // a lambda cannot capture a structured binding
    const index_t dim = rotation.head_dim();
    const double m = rotation.attention_factor();
    for (int repeat = 0; repeat < 5; ++repeat) {
      const double a = random.real(-1000, 1000);
      const double b = random.chance(0.5) ? std::floor(a) + 7 : random.real(-1000, 1000);
      const double shift = std::ldexp(std::floor(random.real(-1e6, 1e6)), 4);
      CAPTURE(a, b, shift);
      const auto q = random.normal_values<double>(dim);
      const auto k = random.normal_values<double>(dim);
      const auto rotated = [&](const std::vector<double>& row, double position) {
        std::vector<double> out(row.size());
        rotate(rotation, token_major(row.data(), 1, 1, dim), token_major(out.data(), 1, 1, dim),
               std::vector{position});
        return out;
      };
      const auto dot = [](const std::vector<double>& x, const std::vector<double>& y) {
        double sum = 0;
        for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
        return sum;
      };
      const auto q_a = rotated(q, a);
      const std::ptrdiff_t head = rotation.rotary_dim();
      CHECK(std::equal(q.begin() + head, q.end(), q_a.begin() + head));
      const std::vector<double> q_turning(q.begin(), q.begin() + head);
      const std::vector<double> q_a_turning(q_a.begin(), q_a.begin() + head);
      CHECK(std::abs(norm(q_a_turning) - m * norm(q_turning)) < 1e-13);
      // a + shift rounds by up to 2^-28 at these magnitudes; compare with the difference that was
      // really taken.
      const double a_far = a + shift, b_far = a_far + std::floor(b - a);
      const double b_near = a + std::floor(b - a);
      const double tolerance = 1e-12 + std::abs((b_far - a_far) - (b_near - a)) * 100;
      CHECK(std::abs(dot(rotated(q, a_far), rotated(k, b_far)) - dot(q_a, rotated(k, b_near))) <=
            tolerance);
      // <R q, g> = <q, R^T g>: R^T is m times the rotation by -a on the turning part.
      CHECK(std::abs(dot(q_a, k) - dot(q, rotated(k, -a))) < 1e-12);
    }
  }
}

TEST_CASE("rotate follows strides and leaves the gaps alone", "[rope]") {
  const rope rotation({.head_dim = 6, .rotary_dim = 4});
  const index_t tokens = 3, heads = 2, token_stride = 20, head_stride = 9;
  const double gap = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> buffer(60, gap);
  const heads_view<double> view{buffer.data(), tokens, heads, 6, token_stride, head_stride};
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      for (index_t i = 0; i < 6; ++i) view.row(t, h)[i] = static_cast<double>(100 * t + 10 * h + i);
    }
  }
  const std::vector<double> before = buffer;
  const std::vector<double> positions = {5, 5, -0.5};
  rotate(rotation, view, positions);
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      const double* old_row = before.data() + t * token_stride + h * head_stride;
      const auto expected = rotated_by_definition(rotation, values_of(old_row, 6),
                                                  positions[static_cast<std::size_t>(t)], 1);
      CHECK(largest_difference(values_of(view.row(t, h), 6), expected) < 1e-12);
    }
  }
  std::size_t gaps = 0;
  for (const double value : buffer) gaps += std::isnan(value) ? 1U : 0U;
  CHECK(gaps == 60 - 36);
}

TEST_CASE("rotate takes no tokens and no heads", "[rope]") {
  const rope rotation({.head_dim = 4});
  const std::vector<double> none;
  const std::vector<double> one = {1};
  CHECK_NOTHROW(rotate(rotation, token_major<float>(nullptr, 0, 2, 4), none));
  CHECK_NOTHROW(rotate(rotation, token_major<float>(nullptr, 1, 0, 4), one));
}

TEST_CASE("rotate refuses shapes and positions that do not fit, and writes nothing", "[rope]") {
  const rope rotation({.head_dim = 4});
  std::vector<float> data(16, 1.0F);
  const std::vector<float> before = data;
  const auto rows = token_major(data.data(), 2, 2, 4);
  const std::vector<double> two = {1, 2};
  const std::vector<double> one = {1};
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH(rotate(rotation, rows, one), contains("1 positions for 2 tokens"));
  CHECK_THROWS_WITH(rotate(rotation, token_major(data.data(), 2, 1, 8), two),
                    contains("head_dim 8") && contains("made for 4"));
  CHECK_THROWS_WITH(rotate(rotation, rows, token_major(data.data(), 2, 1, 4), two),
                    contains("in is (2, 2, 4) but out is (2, 1, 4)"));
  CHECK_THROWS_WITH(rotate(rotation, token_major<float>(nullptr, 2, 2, 4), two),
                    contains("in.data is null"));
  CHECK_THROWS_WITH(rotate(rotation, token_major(data.data(), -1, 2, 4), two),
                    contains("negative size (-1, 2, 4)"));
  CHECK_THROWS_WITH(rotate(rotation, rows, heads_view<float>{data.data(), 2, 2, 4, 0, 4}, two),
                    contains("rows of out overlap"));
  for (const double bad : {infinity, -infinity, 0x1p53, std::nan("")}) {
    CAPTURE(bad);
    CHECK_THROWS_WITH(rotate(rotation, rows, std::vector<double>{1, bad}),
                      contains("positions[1] is"));
  }
  // In place means the same rows: another order of the axes or a shift would read what was written.
  CHECK_THROWS_WITH(rotate(rotation, rows, head_major(data.data(), 2, 2, 4), two),
                    contains("rotate: out and in overlap in memory"));
  CHECK_THROWS_WITH(rotate(rotation, token_major(data.data(), 1, 2, 4),
                           token_major(data.data() + 4, 1, 2, 4), one),
                    contains("rotate: out and in overlap in memory"));
  std::vector<double> positions = {1, 2, 0, 0};
  CHECK_THROWS_WITH(rotate(rope({.head_dim = 2}), token_major(positions.data(), 2, 1, 2),
                           std::span<const double>(positions).first(2)),
                    contains("rotate: out and positions overlap in memory"));
  CHECK(data == before);
  CHECK_NOTHROW(rotate(rotation, rows, std::vector<double>{max_rope_position, 0}));
}

}  // namespace blockattn_test

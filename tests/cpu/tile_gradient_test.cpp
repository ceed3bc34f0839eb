// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/tile_gradient.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using cpu::detail::row_gradient;
using cpu::detail::score_transform;

namespace {

using arch = cpu::default_arch;

template <class C>
constexpr double epsilon = static_cast<double>(std::numeric_limits<C>::epsilon());

}  // namespace

TEMPLATE_TEST_CASE("gradient_of_row turns scores into weights and their gradients",
                   "[tile_gradient]",
                   float,
                   double) {
  using C = TestType;
  constexpr index_t step = cpu::detail::lanes<C, arch>;
  random_source random(test_seed(1));
  for (const double softcap : {0.0, 3.0}) {
    for (const index_range& columns :
         {index_range{0, step}, index_range{step, 6 * step}, index_range{step, step}}) {
      const double scale = 0.3;
      const auto size = static_cast<std::size_t>(7 * step);
      std::vector<C> s = random.normal_values<C>(7 * step);
      std::vector<C> d_s = random.normal_values<C>(7 * step);
      const std::vector<C> scores = s, d_p = d_s;
      const C lse = C(3), delta = C(-0.7);
      // Queries take the factor.
      const auto transform = score_transform<C>::from(scale, softcap);
      for (C& value : s) value *= static_cast<C>(transform.q_factor);
      cpu::detail::gradient_of_row<arch>(s.data(), d_s.data(), columns, transform, {lse, delta});
      for (std::size_t j = 0; j < size; ++j) {
        CAPTURE(softcap, columns.begin, columns.end, j);
        if (!columns.contains(static_cast<index_t>(j))) {
          CHECK(s[j] == scores[j] * static_cast<C>(transform.q_factor));
          CHECK(d_s[j] == d_p[j]);
          continue;
        }
        const double x = scale * static_cast<double>(scores[j]);
        const double t = softcap > 0 ? std::tanh(x / softcap) : 0;
        const double score = softcap > 0 ? softcap * t : x;
        const double p = std::exp(score - static_cast<double>(lse));
        const double g =
            p * (static_cast<double>(d_p[j]) - static_cast<double>(delta)) * (1 - t * t);
        CHECK(std::abs(static_cast<double>(s[j]) - p) <= 16 * epsilon<C> * p);
        CHECK(std::abs(static_cast<double>(d_s[j]) - g) <=
              16 * epsilon<C> * p * (std::abs(static_cast<double>(d_p[j])) + 1));
      }
    }
  }
}

TEST_CASE("no weight passes 1, however lse was rounded", "[tile_gradient]") {
  constexpr index_t step = cpu::detail::lanes<float, arch>;
  std::vector<float> s(static_cast<std::size_t>(step), 3e8F), d_s(s.size(), 1.0F);
  cpu::detail::gradient_of_row<arch>(s.data(), d_s.data(), {0, step},
                                     score_transform<float>::from(1, 0),
                                     {3e8F * (1 - 0x1p-23F), 0.5F});
  for (std::size_t j = 0; j < s.size(); ++j) {
    CHECK(s[j] == 1.0F);
    CHECK(d_s[j] == 0.5F);
  }
}

TEST_CASE("clear_columns keeps the runs and clears the rest, NaN too", "[tile_gradient]") {
  const float nan = std::nanf("");
  std::vector<float> s(12, nan), d_s(12, nan);
  const std::vector<index_range> runs = {{2, 4}, {4, 5}, {8, 10}};
  for (const index_range& run : runs) {
    std::fill(s.begin() + run.begin, s.begin() + run.end, 1.0F);
    std::fill(d_s.begin() + run.begin, d_s.begin() + run.end, 2.0F);
  }
  cpu::detail::clear_columns(s.data(), d_s.data(), {0, 11}, runs);
  CHECK(std::isnan(s[11]));
  s.pop_back();
  d_s.pop_back();
  CHECK(s == std::vector<float>{0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0});
  CHECK(d_s == std::vector<float>{0, 0, 2, 2, 2, 0, 0, 0, 2, 2, 0});
  cpu::detail::clear_columns(s.data(), d_s.data(), {1, 9}, {});
  CHECK(s == std::vector<float>{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0});
}

TEMPLATE_TEST_CASE("dot_each sums from left to right", "[tile_gradient]", float, double, bfloat16) {
  using C = accumulator_t<TestType>;
  random_source random(test_seed(2));
  for (const index_t count : {1, 7, 8, 40}) {
    const index_t stride = count + 3;
    const auto a = random.normal_values<TestType>(8 * stride);
    const auto b = random.normal_values<TestType>(8 * stride);
    C sums[8];
    C one[1];
    cpu::detail::dot_each<arch, 8>(a.data(), stride, b.data(), stride, count, sums);
    for (index_t r = 0; r < 8; ++r) {
      long double exact = 0;
      long double size = 0;
      for (index_t t = 0; t < count; ++t) {
        const auto product =
            static_cast<long double>(load_scalar(a[static_cast<std::size_t>(r * stride + t)])) *
            static_cast<long double>(load_scalar(b[static_cast<std::size_t>(r * stride + t)]));
        exact += product;
        size += std::abs(product);
      }
      CHECK(std::abs(static_cast<double>(static_cast<long double>(sums[r]) - exact)) <=
            static_cast<double>(count) * epsilon<C> * static_cast<double>(size));
      cpu::detail::dot_each<arch, 1>(a.data() + r * stride, stride, b.data() + r * stride, stride,
                                     count, one);
      CHECK(one[0] == sums[r]);
    }
  }
}

TEST_CASE("add_row adds whole vectors", "[tile_gradient]") {
  constexpr index_t step = cpu::detail::lanes<float, arch>;
  random_source random(test_seed(3));
  std::vector<float> sum = random.normal_values<float>(4 * step);
  const std::vector<float> before = sum, part = random.normal_values<float>(4 * step);
  cpu::detail::add_row<arch>(part.data(), 3 * step, sum.data());
  for (std::size_t i = 0; i < sum.size(); ++i) {
    CHECK(sum[i] == (static_cast<index_t>(i) < 3 * step ? before[i] + part[i] : before[i]));
  }
}

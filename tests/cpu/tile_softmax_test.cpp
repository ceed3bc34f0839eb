// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/tile_softmax.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using cpu::detail::score_transform;

namespace {

using arch = cpu::default_arch;

template <class C>
constexpr index_t step = cpu::detail::lanes<C, arch>;

template <class C>
constexpr C infinity = std::numeric_limits<C>::infinity();

template <class C>
constexpr double epsilon = static_cast<double>(std::numeric_limits<C>::epsilon());

}  // namespace

TEMPLATE_TEST_CASE("score_transform is score_scale * softcap(scale * S) in base 2",
                   "[tile_softmax]",
                   float,
                   double) {
  using C = TestType;
  const index_range columns{0, step<C>};
  for (const double scale : {0.125, -0.125, 1.0, 0.0}) {
    for (const double softcap : {0.0, 0.5, 30.0}) {
      for (const double score_scale : {1.0, -2.0, 0.5, 0.0}) {
        for (const double s : {-20.0, -1.0, 0.0, 0.5, 7.0}) {
          CAPTURE(scale, softcap, score_scale, s);
          const auto transform = score_transform<C>::from(scale, softcap, score_scale);
          std::vector<C> row(static_cast<std::size_t>(step<C>),
                             static_cast<C>(s) * transform.q_sign);
          if (transform.cap_inner > 0)
            cpu::detail::cap_scores<C, arch>(row.data(), columns, transform);
          const double capped = softcap > 0 ? softcap * std::tanh(scale * s / softcap) : scale * s;
          const double expected = std::numbers::log2e * score_scale * capped;
          const double found =
              static_cast<double>(transform.scale_log2) * static_cast<double>(row.back());
          CHECK(std::abs(found - expected) <= 16 * epsilon<C> * std::abs(expected) + 1e-30);
          CHECK(transform.scale_log2 > 0);  // times -inf is -inf, never NaN
        }
      }
    }
  }
}

TEST_CASE("hide_columns keeps the runs and hides the rest", "[tile_softmax]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto hidden_of = [&](const index_range& columns, const std::vector<index_range>& runs) {
    std::vector<float> row(20, nan);
    cpu::detail::hide_columns(row.data(), columns, std::span<const index_range>(runs));
    std::vector<index_t> hidden;
    for (std::size_t j = 0; j < row.size(); ++j) {
      if (row[j] == -infinity<float>) hidden.push_back(static_cast<index_t>(j));
    }
    return hidden;
  };
  using list = std::vector<index_t>;
  CHECK(hidden_of({4, 9}, {}) == list{4, 5, 6, 7, 8});
  CHECK(hidden_of({4, 9}, {{4, 9}}) == list{});
  CHECK(hidden_of({4, 9}, {{5, 7}}) == list{4, 7, 8});
  CHECK(hidden_of({4, 9}, {{4, 5}, {5, 6}, {8, 9}}) == list{6, 7});
  CHECK(hidden_of({4, 4}, {}) == list{});
  // Runs may reach beyond the columns.
  CHECK(hidden_of({4, 9}, {{0, 6}}) == list{6, 7, 8});
  CHECK(hidden_of({4, 9}, {{7, 12}}) == list{4, 5, 6});
}

TEMPLATE_TEST_CASE("softmax_row gives weights, sum and rescale of a row",
                   "[tile_softmax]",
                   float,
                   double) {
  using C = TestType;
  const std::uint64_t seed = test_seed(81);
  CAPTURE(seed);
  random_source random(seed);
  for (index_t vectors = 1; vectors <= 11; ++vectors) {
    for (const C row_max : {-infinity<C>, C(-3), C(50)}) {
      const index_range columns{step<C>, (1 + vectors) * step<C>};
      const C scale = static_cast<C>(random.real(0.1, 2));
      CAPTURE(vectors, row_max, scale);
      auto s = random.normal_values<C>(columns.end + 1);
      for (C& value : s) {
        if (random.chance(0.3)) value = -infinity<C>;
      }
      const std::size_t first = static_cast<std::size_t>(columns.begin);
      s[first + static_cast<std::size_t>(random.integer(0, columns.size() - 1))] = C(1);
      std::vector<C> weights(s.size(), C(77));
      const auto update =
          cpu::detail::softmax_row<C, arch>(s.data(), columns, scale, row_max, weights.data());
      double largest = static_cast<double>(row_max);
      for (std::size_t j = first; j + 1 < s.size(); ++j) {
        largest = std::max(largest, static_cast<double>(scale) * static_cast<double>(s[j]));
      }
      // |scaled score| and maximum stay below 64: half an ulp of it in the exponent, twice.
      const double bound = 64 * epsilon<C>;
      CHECK(std::abs(static_cast<double>(update.row_max) - largest) <= bound);
      double sum = 0;
      bool equal = true;
      for (std::size_t j = 0; j < s.size(); ++j) {
        if (j < first || j + 1 == s.size()) {
          CHECK(weights[j] == C(77));
          continue;
        }
        const double exact =
            std::exp2(static_cast<double>(scale) * static_cast<double>(s[j]) - largest);
        if (s[j] == -infinity<C> ? weights[j] != C(0)
                                 : !(std::abs(static_cast<double>(weights[j]) - exact) <= bound))
          equal = false;
        sum += exact;
      }
      CHECK(equal);
      CHECK(std::abs(static_cast<double>(update.sum) - sum) <= bound * std::max(1.0, sum));
      const double rescale = std::exp2(static_cast<double>(row_max) - largest);
      CHECK(std::abs(static_cast<double>(update.rescale) - rescale) <= bound);
    }
  }
}

TEMPLATE_TEST_CASE("a row that sees nothing gets weights of 0", "[tile_softmax]", float, double) {
  using C = TestType;
  std::vector<C> weights(static_cast<std::size_t>(5 * step<C>), C(77));
  cpu::detail::clear_weights<C, arch, C>({step<C>, 4 * step<C>}, weights.data());
  for (index_t j = 0; j < 5 * step<C>; ++j) {
    const bool cleared = j >= step<C> && j < 4 * step<C>;
    CHECK(weights[static_cast<std::size_t>(j)] == (cleared ? C(0) : C(77)));
  }
}

TEMPLATE_TEST_CASE("a NaN among the scores reaches the sum", "[tile_softmax]", float, double) {
  using C = TestType;
  for (index_t at = 0; at < 5 * step<C>; ++at) {
    std::vector<C> s(static_cast<std::size_t>(5 * step<C>), -infinity<C>);
    std::vector<C> weights(s.size());
    s[static_cast<std::size_t>(at)] = std::numeric_limits<C>::quiet_NaN();
    const auto update = cpu::detail::softmax_row<C, arch>(s.data(), {0, 5 * step<C>}, C(1.5),
                                                          -infinity<C>, weights.data());
    CAPTURE(at);
    CHECK(std::isnan(update.sum));
  }
}

#if defined(__AVX512BF16__)
TEST_CASE("softmax_row rounds its weights to bf16 pairs", "[tile_softmax]") {
  random_source random(test_seed(82));
  const auto s = random.normal_values<float>(96);
  std::vector<float> weights(96);
  std::vector<cpu::detail::bf16_pair> pairs(48);
  cpu::detail::softmax_row<float, arch>(s.data(), {0, 96}, 0.5F, -infinity<float>, weights.data());
  cpu::detail::softmax_row<cpu::detail::bf16_pair, arch>(s.data(), {0, 96}, 0.5F, -infinity<float>,
                                                         pairs.data());
  for (std::size_t j = 0; j < 96; ++j) {
    const bfloat16 half = j % 2 == 0 ? pairs[j / 2].first : pairs[j / 2].second;
    CHECK(std::abs(load_scalar(half) - weights[j]) <= 0x1p-8F * weights[j]);
  }
}
#endif

TEMPLATE_TEST_CASE("scale_row multiplies a row", "[tile_softmax]", float, double) {
  using C = TestType;
  std::vector<C> row(static_cast<std::size_t>(3 * step<C>) + 1, C(4));
  cpu::detail::scale_row<C, arch>(row.data(), 3 * step<C>, C(0.25));
  CHECK(row.back() == C(4));
  row.pop_back();
  CHECK(row == std::vector<C>(row.size(), C(1)));
}

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

TEMPLATE_TEST_CASE("score_transform is score_scale * softcap(scale * S)",
                   "[tile_softmax]",
                   float,
                   double,
                   cpu::detail::bf16_pair) {
  constexpr bool in_queries = cpu::detail::scale_in_queries<TestType>;
  using C = std::conditional_t<in_queries, TestType, float>;
  const index_range columns{0, step<C>};
  for (const double scale : {0.125, -0.125, 0.3, 1.0, 0.0}) {
    for (const double softcap : {0.0, 0.5, 30.0}) {
      for (const double score_scale : {1.0, -2.0, 0.5, 0.0}) {
        for (const double s : {-20.0, -1.0, 0.0, 0.5, 7.0}) {
          CAPTURE(scale, softcap, score_scale, s);
          const auto transform =
              score_transform<C>::template from<TestType>(scale, softcap, score_scale);
          std::vector<C> row(static_cast<std::size_t>(step<C>),
                             static_cast<C>(s * transform.q_factor));
          if (transform.cap != 0) cpu::detail::cap_scores<C, arch>(row.data(), columns, transform);
          const double capped = softcap > 0 ? softcap * std::tanh(scale * s / softcap) : scale * s;
          const double expected = score_scale * capped;
          const auto found = static_cast<double>(row.back());
          const double unit = in_queries ? 1 : std::numbers::ln2 * double(transform.scale_log2);
          CHECK(std::abs(unit * found - expected) <= 16 * epsilon<C> * std::abs(expected) + 1e-30);
          CHECK(transform.scale_log2 > 0);  // times -inf is -inf, never NaN
          if (!in_queries) CHECK(std::abs(transform.q_factor * transform.q_factor - 0.5) == 0.5);
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
      CAPTURE(vectors, row_max);
      auto s = random.normal_values<C>(columns.end + 1);
      for (C& value : s) {
        if (random.chance(0.3)) value = -infinity<C>;
      }
      const std::size_t first = static_cast<std::size_t>(columns.begin);
      s[first + static_cast<std::size_t>(random.integer(0, columns.size() - 1))] = C(1);
      std::vector<C> weights(s.size(), C(77));
      const auto update =
          cpu::detail::softmax_row<C, arch>(s.data(), columns, {}, row_max, weights.data());
      double largest = static_cast<double>(row_max);
      for (std::size_t j = first; j + 1 < s.size(); ++j) {
        largest = std::max(largest, static_cast<double>(s[j]));
      }
      // |score| and maximum stay below 64: half an ulp of it in the exponent, twice.
      const double bound = 64 * epsilon<C>;
      CHECK(std::abs(static_cast<double>(update.row_max) - largest) <= bound);
      double sum = 0;
      bool equal = true;
      for (std::size_t j = 0; j < s.size(); ++j) {
        if (j < first || j + 1 == s.size()) {
          CHECK(weights[j] == C(77));
          continue;
        }
        const double exact = std::exp(static_cast<double>(s[j]) - largest);
        if (s[j] == -infinity<C> ? weights[j] != C(0)
                                 : !(std::abs(static_cast<double>(weights[j]) - exact) <= bound))
          equal = false;
        sum += exact;
      }
      CHECK(equal);
      CHECK(std::abs(static_cast<double>(update.sum) - sum) <= bound * std::max(1.0, sum));
      const double rescale = std::exp(static_cast<double>(row_max) - largest);
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
    const auto update = cpu::detail::softmax_row<C, arch>(s.data(), {0, 5 * step<C>}, {},
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
  // The second tile's maximum is not the row's: its weights have an offset.
  for (const float old_max : {-infinity<float>, 3.0F}) {
    std::vector<float> scores = s;
    for (float& score : scores) score *= 0.3F;
    const auto expected =
        cpu::detail::softmax_row<float, arch>(scores.data(), {0, 96}, {}, old_max, weights.data());
    const auto transform = score_transform<float>::from<cpu::detail::bf16_pair>(0.3, 0);
    const auto found = cpu::detail::softmax_row<cpu::detail::bf16_pair, arch>(
        s.data(), {0, 96}, transform, old_max, pairs.data());
    CHECK(found.row_max == Approx(expected.row_max).epsilon(1e-6));
    CHECK(found.sum == Approx(expected.sum).epsilon(1e-5));
    CHECK(found.rescale == Approx(expected.rescale).epsilon(1e-5));
    for (std::size_t j = 0; j < 96; ++j) {
      const bfloat16 half = j % 2 == 0 ? pairs[j / 2].first : pairs[j / 2].second;
      CHECK(std::abs(load_scalar(half) - weights[j]) <= 0x1p-8F * weights[j]);
    }
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

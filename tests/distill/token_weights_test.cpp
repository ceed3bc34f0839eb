// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/token_weights.hpp>

#include <numeric>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

std::vector<float> weights_of(const std::vector<float>& scores,
                              const token_weight_options& options,
                              const std::vector<std::uint8_t>& ignored = {}) {
  std::vector<float> weights(scores.size(), -7.0F);
  token_weights({.scores = scores, .ignored = ignored, .weights = weights}, options);
  return weights;
}

}  // namespace

TEST_CASE("weights in proportion to the scores, with mean 1", "[token_weights]") {
  CHECK(weights_of({1, 2, 3, 2}, {}) == std::vector<float>{0.5F, 1, 1.5F, 1});
  // Tokens that do not count weigh 0 and enter no mean, whatever their score.
  CHECK(weights_of({1, -9, 3, 2}, {}, {0, 1, 0, 0}) == std::vector<float>{0.5F, 0, 1.5F, 1});
  // Nothing to prefer.
  CHECK(weights_of({0, 0, 0}, {}, {0, 0, 1}) == std::vector<float>{1, 1, 0});
  CHECK(weights_of({}, {}).empty());
  CHECK(weights_of({3, 4}, {}, {1, 1}) == std::vector<float>{0, 0});
}

TEST_CASE("floor and cap are in units of the mean score", "[token_weights]") {
  // Scores over their mean 2: 0, 1/2, 2, 3/2; clamped to [1/2, 3/2]; their mean is 1.
  CHECK(weights_of({0, 1, 4, 3}, {.floor = 0.5, .cap = 1.5}) ==
        std::vector<float>{0.5F, 0.5F, 1.5F, 1.5F});
  random_source random(test_seed(330));
  for (const token_weighting weighting :
       {token_weighting::proportional, token_weighting::top_fraction}) {
    std::vector<float> scores;
    for (int t = 0; t < 500; ++t) scores.push_back(static_cast<float>(random.real(0, 1)));
    const auto weights =
        weights_of(scores, {.weighting = weighting, .fraction = 0.1, .floor = 0.25, .cap = 4});
    const auto [least, most] = std::minmax_element(weights.begin(), weights.end());
    CHECK(*least > 0);
    CHECK(*most / *least <= 16 * (1 + 1e-6F));
    CHECK(std::accumulate(weights.begin(), weights.end(), 0.0) / 500 == Approx(1).epsilon(1e-6));
  }
}

TEST_CASE("the top fraction is kept, earlier tokens first among equals", "[token_weights]") {
  const token_weight_options half{.weighting = token_weighting::top_fraction, .fraction = 0.5};
  CHECK(weights_of({5, 1, 4, 2}, half) == std::vector<float>{2, 0, 2, 0});
  CHECK(weights_of({1, 1, 1, 1}, half) == std::vector<float>{2, 2, 0, 0});
  CHECK(weights_of({1, 2, 3}, half) == std::vector<float>{0, 1.5F, 1.5F});  // rounded up
  CHECK(weights_of({9, 1, 2, 3}, half, {1, 0, 0, 0}) == std::vector<float>{0, 0, 1.5F, 1.5F});
  CHECK(weights_of({3, 1, 2}, {.weighting = token_weighting::top_fraction, .fraction = 1}) ==
        std::vector<float>{1, 1, 1});
}

TEST_CASE("uniform weights need no scores", "[token_weights]") {
  std::vector<float> weights(3);
  const std::vector<std::uint8_t> ignored = {0, 1, 0};
  token_weights({.ignored = ignored, .weights = weights}, {.weighting = token_weighting::uniform});
  CHECK(weights == std::vector<float>{1, 0, 1});
}

TEST_CASE("weights may take the place of the scores", "[token_weights]") {
  for (const token_weighting weighting :
       {token_weighting::proportional, token_weighting::top_fraction}) {
    std::vector<float> scores = {1, 2, 3, 2};
    const auto expected = weights_of(scores, {.weighting = weighting});
    token_weights({.scores = scores, .weights = scores}, {.weighting = weighting});
    CHECK(scores == expected);
  }
}

TEST_CASE("token_weights refuses bad arguments in a sentence, before it writes",
          "[token_weights]") {
  const auto refused = [](const std::vector<float>& scores, const token_weight_options& options,
                          const char* sentence, const std::vector<std::uint8_t>& ignored = {}) {
    std::vector<float> weights(2, -7.0F);
    CHECK_THROWS_WITH(
        token_weights({.scores = scores, .ignored = ignored, .weights = weights}, options),
        contains(sentence));
    CHECK(weights == std::vector<float>{-7, -7});
  };
  refused({1}, {}, "token_weights: 1 scores for 2 weights");
  refused({1, 2}, {}, "ignored has 1 entries for 2 weights", {0});
  refused({1, -2}, {}, "scores[1] is -2, must be finite and >= 0");
  refused({std::nanf(""), 1}, {}, "scores[0] is");
  refused({std::numeric_limits<float>::infinity(), 1}, {}, "scores[0] is inf");
  refused({1, 2}, {.fraction = 0}, "options.fraction is 0, must be in (0, 1]");
  refused({1, 2}, {.fraction = 1.5}, "options.fraction is 1.5");
  refused({1, 2}, {.floor = -1}, "options.floor is -1");
  refused({1, 2}, {.floor = 2, .cap = 1}, "options.floor is 2 and options.cap 1");
  refused({1, 2}, {.floor = 0, .cap = 0}, "cap > 0");
  refused({1, 2}, {.weighting = static_cast<token_weighting>(3)}, "options.weighting is 3");
  std::vector<float> three = {1, 2, 3};
  CHECK_THROWS_WITH(
      token_weights({.scores = std::span(three).first(2), .weights = std::span(three).last(2)}, {}),
      contains("token_weights: weights and scores overlap in memory"));
  CHECK_NOTHROW(token_weights({.scores = three, .weights = three}, {}));
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_distill.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

/// Every way of weighting.
std::vector<token_weight_options> all_token_weight_options() {
  std::vector<token_weight_options> all;
  for (const token_weighting weighting :
       {token_weighting::uniform, token_weighting::proportional, token_weighting::top_fraction}) {
    for (const double fraction : {1e-9, 0.1, 0.5, 1.0}) {
      all.push_back({.weighting = weighting, .fraction = fraction});
      all.push_back({.weighting = weighting, .fraction = fraction, .floor = 0.25, .cap = 1.5});
    }
  }
  return all;
}

}  // namespace

TEST_CASE("cuda::token_weights are those of the host") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(440);
  random_source random(seed);
  for (const token_weight_options& options : all_token_weight_options()) {
    for (const index_t tokens : {0, 1, 31, 32, 33, 511, 512, 513, 3000}) {
      for (const double distinct : {1e6, 5.0, 0.0}) {  // many equal scores, and none positive
        std::vector<float> scores;
        std::vector<std::uint8_t> ignored;
        for (index_t t = 0; t < tokens; ++t) {
          ignored.push_back(random.chance(0.2));
          const double score =
              std::floor(random.real(0, distinct)) * (random.chance(0.1) ? -0.0 : 1.0);
          scores.push_back(ignored.back() ? std::nanf("") : static_cast<float>(score));
        }
        CAPTURE(seed, static_cast<int>(options.weighting), options.fraction, options.floor, tokens,
                distinct);
        std::vector<float> expected(scores.size()), found(scores.size());
        blockattn::token_weights<float>({.scores = scores, .ignored = ignored, .weights = expected},
                                        options);
        device_token_weights({.scores = scores, .ignored = ignored, .weights = found}, options);
        for (std::size_t t = 0; t < scores.size(); ++t) {
          CAPTURE(t);
          // fp64 sums in another order can move a weight to the next number.
          REQUIRE(std::abs(found[t] - expected[t]) <= 0x1p-23F * expected[t]);
        }
        device_token_weights({.scores = scores, .ignored = ignored, .weights = scores}, options);
        CHECK(scores == found);  // in place
      }
    }
  }
}

TEST_CASE("cuda::token_weights need no scores where all are alike, and no ignored") {
  if (skips_without_device()) return;
  std::vector<float> weights(700, -1.0F);
  device_token_weights({.weights = weights}, {.weighting = token_weighting::uniform});
  CHECK(weights == std::vector<float>(700, 1.0F));
  const std::vector<float> scores = {5, 1, 4, 2};
  std::vector<float> halves(4);
  device_token_weights({.scores = scores, .weights = halves},
                       {.weighting = token_weighting::top_fraction, .fraction = 0.5});
  CHECK(halves == std::vector<float>{2, 0, 2, 0});
}

TEST_CASE("cuda::token_weights refuses bad arguments in a sentence") {
  std::vector<float> weights(2, -7.0F);
  const auto refused = [&](std::size_t scores, std::size_t ignored,
                           const token_weight_options& options, const char* sentence) {
    const std::vector<float> some(scores);
    const std::vector<std::uint8_t> flags(ignored);
    CHECK_THROWS_WITH(
        refused_token_weights({.scores = some, .ignored = flags, .weights = weights}, options),
        contains(std::string("cuda::token_weights: ") + sentence));
    CHECK(weights == std::vector<float>{-7, -7});
  };
  refused(1, 0, {}, "1 scores for 2 weights");
  refused(2, 1, {}, "ignored has 1 entries for 2 weights");
  refused(2, 0, {.fraction = 0}, "options.fraction is 0, must be in (0, 1]");
  refused(2, 0, {.floor = 2, .cap = 1}, "options.floor is 2 and options.cap 1");
}

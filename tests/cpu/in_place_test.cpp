// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/in_place.hpp>

#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

using arch = cpu::default_arch;

/// Whole numbers: every sum is exact in any order, in fp32 as in fp64.
template <class T>
std::vector<T> whole_numbers(random_source& random, index_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) store_scalar(value, static_cast<double>(random.integer(-8, 8)));
  return values;
}

template <class T>
void check_scores(
    random_source& random, index_t rows, index_t keys, index_t head_dim, index_t padding) {
  using C = accumulator_t<T>;
  CAPTURE(rows, keys, head_dim, padding);
  const index_t q_stride = head_dim + padding;
  const index_t token_stride = head_dim + 2 * padding;
  const index_t score_stride = keys + padding;
  auto q = whole_numbers<C>(random, rows * q_stride);
  auto k = whole_numbers<T>(random, keys * token_stride);
  // What lies between the rows is not read.
  for (index_t at = 0; at < rows * q_stride; ++at) {
    if (at % q_stride >= head_dim)
      q[static_cast<std::size_t>(at)] = std::numeric_limits<C>::quiet_NaN();
  }
  for (index_t at = 0; at < keys * token_stride; ++at) {
    if (at % token_stride >= head_dim)
      store_scalar(k[static_cast<std::size_t>(at)], std::numeric_limits<C>::quiet_NaN());
  }
  std::vector<C> scores(static_cast<std::size_t>(rows * score_stride), C(-1234));
  std::vector<C> expected = scores;
  for (index_t r = 0; r < rows; ++r) {
    for (index_t j = 0; j < keys; ++j) {
      C& sum = expected[static_cast<std::size_t>(r * score_stride + j)];
      sum = 0;
      for (index_t t = 0; t < head_dim; ++t) {
        sum += q[static_cast<std::size_t>(r * q_stride + t)] *
               static_cast<C>(load_scalar(k[static_cast<std::size_t>(j * token_stride + t)]));
      }
    }
  }
  cpu::detail::score_in_place<arch>(rows, q.data(), q_stride, k.data(), token_stride, keys,
                                    head_dim, scores.data(), score_stride);
  CHECK(scores == expected);
}

}  // namespace

TEMPLATE_TEST_CASE(
    "score_in_place equals the naive product", "[in_place]", float, double, bfloat16, float16) {
  const std::uint64_t seed = test_seed(41);
  CAPTURE(seed);
  random_source random(seed);
  for (index_t rows = 0; rows <= 9; ++rows) {
    for (index_t keys = 0; keys <= 9; ++keys) {
      for (const index_t head_dim : {0, 1, 8, 15, 16, 17, 24, 40}) {
        check_scores<TestType>(random, rows, keys, head_dim, random.integer(0, 5));
      }
    }
  }
}

TEST_CASE("score_in_place reads keys with 4 KiB and negative strides", "[in_place]") {
  const std::uint64_t seed = test_seed(42);
  CAPTURE(seed);
  random_source random(seed);
  constexpr index_t dim = 64;
  constexpr index_t keys = 13;
  constexpr index_t stride = 1024;
  const auto k = whole_numbers<float>(random, keys * stride);
  const auto q = whole_numbers<float>(random, 3 * dim);
  std::vector<float> forwards(3 * keys);
  std::vector<float> backwards(3 * keys);
  cpu::detail::score_in_place<arch>(index_t{3}, q.data(), dim, k.data(), stride, keys, dim,
                                    forwards.data(), keys);
  cpu::detail::score_in_place<arch>(index_t{3}, q.data(), dim, k.data() + (keys - 1) * stride,
                                    -stride, keys, dim, backwards.data(), keys);
  for (std::size_t r = 0; r < 3; ++r) {
    for (std::size_t j = 0; j < keys; ++j) {
      float sum = 0;
      for (std::size_t t = 0; t < dim; ++t) sum += q[r * dim + t] * k[j * stride + t];
      CHECK(forwards[r * keys + j] == sum);
      CHECK(backwards[r * keys + keys - 1 - j] == sum);
    }
  }
}

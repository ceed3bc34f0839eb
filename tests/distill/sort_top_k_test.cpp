// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/sort_top_k.hpp>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

TEST_CASE("sort_top_k sorts each row by id and moves the log-probabilities along", "[sort_top_k]") {
  std::vector<std::int32_t> ids = {7, 2, 5, 1, 9, 0};
  std::vector<float> logs = {-0.1F, -2, -3, -0.2F, -1, -4};
  sort_top_k(3, ids, logs);
  CHECK(ids == std::vector<std::int32_t>{2, 5, 7, 0, 1, 9});
  CHECK(logs == std::vector<float>{-2, -3, -0.1F, -4, -0.2F, -1});
}

TEST_CASE("sort_top_k refuses what is not whole rows", "[sort_top_k]") {
  std::vector<std::int32_t> ids = {7, 2, 5};
  std::vector<float> logs = {-0.1F, -2, -3};
  CHECK_THROWS_WITH(sort_top_k(2, ids, logs), contains("sort_top_k: 3 ids and 3 log-prob"));
  CHECK_THROWS_WITH(sort_top_k(0, ids, logs), contains("k is 0, must be in"));
  CHECK_THROWS_WITH(sort_top_k(index_t{1} << 60, ids, logs), contains("k is 1152921504606846976"));
  CHECK_THROWS_WITH(sort_top_k(index_t{1} << 60, std::span<std::int32_t>(), std::span<float>()),
                    contains("k is 1152921504606846976"));
  CHECK_THROWS_WITH(sort_top_k(3, ids, std::span(logs).first(2)), contains("2 log-prob"));
  CHECK(ids == std::vector<std::int32_t>{7, 2, 5});
}

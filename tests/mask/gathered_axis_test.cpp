// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/gathered_axis.hpp>

#include <array>

#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn;
using blockattn::detail::gathered_axis;
using blockattn_test::contains;

namespace {

std::vector<index_range> tokens_of(std::span<const detail::gathered_run> runs) {
  std::vector<index_range> tokens;
  for (const detail::gathered_run& run : runs) tokens.push_back(run.tokens);
  return tokens;
}

}  // namespace

TEST_CASE("picked tokens fall into maximal runs with ranks") {
  const gathered_axis axis("f", "index", std::array<index_t, 5>{1, 2, 5, 7, 8}, 10);
  CHECK(axis.size() == 5);
  CHECK(tokens_of(axis.runs_in({0, 10})) == std::vector<index_range>{{1, 3}, {5, 6}, {7, 9}});
  CHECK(tokens_of(axis.runs_in({2, 6})) == std::vector<index_range>{{1, 3}, {5, 6}});
  CHECK(axis.runs_in({3, 5}).empty());
  CHECK(axis.runs_in({6, 6}).empty());
  CHECK(axis.ranks_in({0, 10}) == index_range{0, 5});
  CHECK(axis.ranks_in({2, 8}) == index_range{1, 4});
  CHECK(axis.ranks_in({3, 5}).empty());
  CHECK(axis.hull_in({0, 10}) == index_range{1, 9});
  CHECK(axis.hull_in({2, 8}) == index_range{2, 8});
  CHECK(axis.hull_in({3, 7}) == index_range{5, 6});
  CHECK(axis.hull_in({9, 10}).empty());
}

TEST_CASE("all tokens are one run") {
  CHECK(tokens_of(gathered_axis(4).runs_in({0, 4})) == std::vector<index_range>{{0, 4}});
  CHECK(gathered_axis(4).ranks_in({1, 3}) == index_range{1, 3});
  CHECK(gathered_axis(0).size() == 0);
  CHECK(gathered_axis(0).runs_in({0, 1}).empty());
}

TEST_CASE("indices that repeat, fall or leave the axis are refused") {
  const auto axis = [](std::array<index_t, 3> indices) {
    return gathered_axis("f", "index", indices, 10);
  };
  CHECK_THROWS_WITH(axis({1, 4, 4}),
                    contains("f: index[2] is 4") && contains("index[1] which is 4"));
  CHECK_THROWS_WITH(axis({5, 4, 6}), contains("index[1] is 4"));
  CHECK_THROWS_WITH(axis({0, 1, 10}), contains("index[2] is 10") && contains("[0, 10)"));
  CHECK_THROWS_WITH(axis({-1, 1, 2}), contains("index[0] is -1"));
  CHECK_NOTHROW(axis({0, 1, 9}));
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <array>
#include <blockattn/plan/make_tile_plan.hpp>
#include <blockattn/plan/plan_set.hpp>
#include <string>

#include "plan/plan_masks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

namespace {

template <class Check>
std::string message_of(const Check& check) {
  try {
    check();
  } catch (const error& e) {
    return e.what();
  }
  return "";
}

std::string refusal(const plan_set& set, index_t query_heads, index_t queries, index_t keys) {
  return message_of([&] { check_plan_set(set, query_heads, queries, keys, "verb"); });
}

}  // namespace

TEST_CASE("one plan serves all heads", "[plan]") {
  const tile_plan plan = make_tile_plan(causal(6), {2, 2});
  const plan_set set = plan;
  for (index_t head = 0; head < 5; ++head) CHECK(&set.of_head(head) == &plan);
  CHECK(refusal(set, 5, 6, 6) == "");
  CHECK(refusal(set, 0, 6, 6) == "");
}

TEST_CASE("each head finds its own plan", "[plan]") {
  const std::array<tile_plan, 2> plans = {make_tile_plan(causal(6), {2, 2}),
                                          make_tile_plan(window(6, 2), {2, 2})};
  const std::array<index_t, 3> head_to_plan = {1, 0, 1};
  const plan_set set(plans, head_to_plan);
  CHECK(&set.of_head(0) == &plans[1]);
  CHECK(&set.of_head(1) == &plans[0]);
  CHECK(&set.of_head(2) == &plans[1]);
  CHECK(refusal(set, 3, 6, 6) == "");
}

TEST_CASE("check_plan_set refuses, with the numbers", "[plan]") {
  const std::array<tile_plan, 2> plans = {make_tile_plan(causal(6), {2, 2}),
                                          make_tile_plan(causal(5), {2, 2})};
  const std::array<index_t, 3> good = {0, 0, 0};
  const std::array<index_t, 3> negative = {0, -1, 0};
  const std::array<index_t, 3> beyond = {0, 0, 2};

  CHECK(refusal({std::span<const tile_plan>(), {}}, 3, 6, 6) == "verb: the plan set holds no plan");
  CHECK(refusal({plans, {}}, 3, 6, 6) ==
        "verb: the plan set holds 2 plans but head_to_plan is empty; it must name the plan of each "
        "of the 3 query heads");
  // Nobody needs a plan where there is no head.
  const std::array<tile_plan, 2> alike = {plans[0], plans[0]};
  CHECK(refusal({alike, {}}, 0, 6, 6) == "");
  CHECK(refusal({plans, good}, 4, 6, 6) == "verb: head_to_plan has 3 entries for 4 query heads");
  CHECK(refusal({plans, negative}, 3, 6, 6) == "verb: head_to_plan[1] is -1, must be in [0, 2)");
  CHECK(refusal({plans, beyond}, 3, 6, 6) == "verb: head_to_plan[2] is 2, must be in [0, 2)");
  CHECK(refusal({plans, good}, 3, 6, 6) ==
        "verb: plan 1 is for 5 queries x 5 keys, the arguments have 6 x 6");
  CHECK(refusal(plans[0], 3, 6, 7) ==
        "verb: plan 0 is for 6 queries x 6 keys, the arguments have 6 x 7");
}

TEST_CASE("check_transposed refuses plans without lists by key", "[plan]") {
  const std::array<tile_plan, 2> plans = {make_tile_plan(causal(6), {2, 2}, {.transposed = true}),
                                          make_tile_plan(causal(6), {2, 2})};
  const std::array<index_t, 2> heads = {0, 1};
  CHECK(message_of([&] { check_transposed(plans[0], "verb"); }) == "");
  CHECK(message_of([&] {
          check_transposed({plans, heads}, "verb");
        }) == "verb: plan 1 has no transposed tile lists; build it with {.transposed = true}");
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/attention/merge_arguments.hpp>

#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// A valid merge of two states of (5, 4, 16), whose parts a test spoils.
struct call {
  std::vector<float> memory = std::vector<float>(5 * 4 * 16);
  std::vector<float> results = std::vector<float>(5 * 4 * 17);
  std::vector<partial_state<float>> states = {state(), state()};
  merge_arguments<float> arguments = {.states = states,
                                      .o = token_major(results.data(), 5, 4, 16),
                                      .lse = token_major_lse(results.data() + 5 * 4 * 16, 5, 4)};

  partial_state<float> state() {
    return {.o = token_major<const float>(memory.data(), 5, 4, 16),
            .lse = token_major_lse<const float>(memory.data(), 5, 4)};
  }
};

/// The text of the error after `spoil` has changed a valid call; empty when nothing is refused.
template <class Spoil>
std::string refusal(const Spoil& spoil) {
  call c;
  spoil(c);
  try {
    blockattn::detail::check_merge("f", c.arguments);
  } catch (const error& refused) {
    return refused.what();
  }
  return "";
}

}  // namespace

TEST_CASE("check_merge accepts valid and empty merges", "[merge_arguments]") {
  CHECK(refusal([](call&) {}).empty());
  CHECK(refusal([](call& c) { c.arguments.states = {}; }).empty());
  CHECK(refusal([](call& c) { c.arguments.lse = {}; }).empty());
  CHECK(refusal([](call& c) { c.states[0].log_weight = -infinity; }).empty());
  CHECK(refusal([](call& c) { c.states[0].row_log_weights = c.states[0].lse; }).empty());
  CHECK(refusal([](call& c) { c.arguments = {}; }).empty());
  // No rows: lse may be missing.
  CHECK(refusal([](call& c) {
          c.states = {{.o = {.tokens = 0, .heads = 4, .head_dim = 16}, .lse = {}}};
          c.arguments.states = c.states;
          c.arguments.o.tokens = 0;
          c.arguments.lse = {};
        }).empty());
}

TEST_CASE("check_merge refuses a bad result in a sentence", "[merge_arguments]") {
  CHECK(refusal([](call& c) { c.arguments.o.data = nullptr; }) ==
        "f: o.data is null but its size is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.arguments.o.heads = -4; }) == "f: o has negative size (5, -4, 16)");
  CHECK(refusal([](call& c) { c.arguments.o.head_stride = 8; }) ==
        "f: rows of o overlap: head_dim 16, token_stride 64, head_stride 8");
  CHECK(refusal([](call& c) { c.arguments.lse.tokens = 4; }) ==
        "f: lse is (4, 4) but there are (5, 4) query tokens and heads");
  CHECK(refusal([](call& c) {
          c.arguments.sink_logits = {c.memory.data(), 5};
        }) == "f: 5 sink_logits for 4 query heads");
}

TEST_CASE("check_merge names the state that it refuses", "[merge_arguments]") {
  CHECK(refusal([](call& c) { c.states[1].o.data = nullptr; }) ==
        "f: state 1: o.data is null but its size is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.states[1].o.tokens = 4; }) ==
        "f: state 1: o is (4, 4, 16) but the result is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.states[0].o.heads = 3; }) ==
        "f: state 0: o is (5, 3, 16) but the result is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.states[0].o.head_dim = 8; }) ==
        "f: state 0: o is (5, 4, 8) but the result is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.states[1].lse = {}; }) == "f: state 1: lse is missing");
  CHECK(refusal([](call& c) { c.states[1].lse.heads = 2; }) ==
        "f: state 1: lse is (5, 2) but there are (5, 4) query tokens and heads");
  CHECK(refusal([](call& c) {
          c.states[1].row_log_weights = c.states[1].lse;
          c.states[1].row_log_weights.tokens = 9;
        }) == "f: state 1: row_log_weights is (9, 4) but there are (5, 4) query tokens and heads");
}

TEST_CASE("check_merge refuses weights that are not numbers", "[merge_arguments]") {
  const auto text = [](const std::string& scale, const std::string& weight) {
    return "f: state 0: log_weight_scale " + scale + " must be finite and log_weight " + weight +
           " finite or -inf, in the accumulator";
  };
  CHECK(refusal([](call& c) { c.states[0].log_weight_scale = infinity; }) == text("inf", "0"));
  CHECK(refusal([](call& c) { c.states[0].log_weight = infinity; }) == text("1", "inf"));
  CHECK(refusal([](call& c) { c.states[0].log_weight = std::nan(""); }) == text("1", "nan"));
}

TEST_CASE("check_merge lets the result take the place of a state, and no other overlap",
          "[merge_arguments]") {
  CHECK(
      refusal([](call& c) { c.arguments.o.data = c.memory.data(); })
          .starts_with(
              "f: state 0: o of the result and lse overlap in memory"));  // states share their memory
  const auto apart = [](call& c) {
    for (auto& state : c.states) state.lse.data = c.results.data();
    c.arguments.lse = {};
    c.arguments.o.data = c.memory.data();
  };
  CHECK(refusal(apart).empty());
  CHECK(refusal([&](call& c) {
          apart(c);
          c.arguments.o = head_major(c.memory.data(), 5, 4, 16);
        }).starts_with("f: state 0: o of the result and o overlap in memory"));
  CHECK(refusal([&](call& c) {
          apart(c);
          c.arguments.lse = {c.results.data(), 5, 4, 4, 1};
        }).empty());
  CHECK(refusal([&](call& c) {
          apart(c);
          c.arguments.lse = {c.results.data() + 1, 5, 4, 4, 1};
        }).starts_with("f: state 0: lse of the result and lse overlap in memory"));
  CHECK(refusal([&](call& c) {
          apart(c);
          c.states[1].row_log_weights = token_major_lse<const float>(c.memory.data() + 100, 5, 4);
        }).starts_with("f: state 1: o of the result and row_log_weights overlap in memory"));
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/attention/merge_backward_arguments.hpp>

#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

/// A valid call over two states of (5, 4, 16), whose parts a test spoils.
struct call {
  using memory = std::vector<float>;
  memory inputs = memory(3 * 5 * 4 * 16);
  memory outputs = memory(6 * 5 * 4 * 16);
  std::vector<partial_state<float>> states = {state(0), state(1)};
  std::vector<partial_state_gradient<float>> gradients = {gradient(0), gradient(1)};
  merge_backward_arguments<float> arguments = {
      .states = states,
      .d_o = token_major<const float>(inputs.data() + 2 * 320, 5, 4, 16),
      .d_lse = token_major_lse<const float>(inputs.data(), 5, 4),
      .gradients = gradients,
      .sink_logits = std::span<const float>(inputs).first(4),
      .d_sink_logits = std::span<float>(outputs).last(4)};

  partial_state<float> state(index_t s) {
    return {.o = token_major<const float>(inputs.data() + s * 320, 5, 4, 16),
            .lse = token_major_lse<const float>(inputs.data(), 5, 4),
            .row_log_weights = token_major_lse<const float>(inputs.data(), 5, 4)};
  }
  partial_state_gradient<float> gradient(index_t s) {
    float* const begin = outputs.data() + s * 3 * 320;
    return {.d_o = token_major(begin, 5, 4, 16),
            .d_lse = token_major_lse(begin + 320, 5, 4),
            .d_row_log_weights = token_major_lse(begin + 2 * 320, 5, 4)};
  }
};

/// The text of the error after `spoil` has changed a valid call; empty when nothing is refused.
template <class Spoil>
std::string refusal(const Spoil& spoil) {
  call c;
  spoil(c);
  try {
    blockattn::detail::check_merge_backward("f", c.arguments);
  } catch (const error& refused) {
    return refused.what();
  }
  return "";
}

}  // namespace

TEST_CASE("check_merge_backward accepts valid calls and gradients left out",
          "[merge_backward_arguments]") {
  CHECK(refusal([](call&) {}).empty());
  CHECK(refusal([](call& c) { c.gradients[0] = {}; }).empty());
  CHECK(refusal([](call& c) { c.arguments.d_lse = {}; }).empty());
  CHECK(refusal([](call& c) { c.arguments.d_sink_logits = {}; }).empty());
  CHECK(refusal([](call& c) {
          c.arguments.states = {};
          c.arguments.gradients = {};
        }).empty());
  CHECK(refusal([](call& c) { c.arguments = {}; }).empty());
}

TEST_CASE("check_merge_backward refuses what does not fit, in a sentence",
          "[merge_backward_arguments]") {
  CHECK(refusal([](call& c) { c.arguments.d_o.data = nullptr; }) ==
        "f: d_o.data is null but its size is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.arguments.d_lse.heads = 3; }) ==
        "f: d_lse is (5, 3) but there are (5, 4) query tokens and heads");
  CHECK(refusal([](call& c) { c.arguments.sink_logits = {}; }) ==
        "f: 4 d_sink_logits for 0 sink_logits");
  CHECK(refusal([](call& c) { c.arguments.d_sink_logits = c.arguments.d_sink_logits.first(3); }) ==
        "f: 3 d_sink_logits for 4 sink_logits");
  CHECK(refusal([](call& c) { c.arguments.gradients = c.arguments.gradients.first(1); }) ==
        "f: 1 gradients for 2 states");
  CHECK(refusal([](call& c) { c.states[1].o.tokens = 4; }) ==
        "f: state 1: o is (4, 4, 16) but the result is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.gradients[1].d_o.heads = 3; }) ==
        "f: state 1: d_o is (5, 3, 16) but the gradient of the result is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.gradients[0].d_o.head_stride = 8; }) ==
        "f: state 0: rows of d_o overlap: head_dim 16, token_stride 64, head_stride 8");
  CHECK(refusal([](call& c) { c.gradients[0].d_lse.token_stride = 0; }) ==
        "f: state 0: entries of d_lse overlap: token_stride 0, head_stride 1");
  CHECK(refusal([](call& c) { c.gradients[0].d_row_log_weights.tokens = 6; }) ==
        "f: state 0: d_row_log_weights is (6, 4) but there are (5, 4) query tokens and heads");
  CHECK(refusal([](call& c) { c.states[0].row_log_weights = {}; }) ==
        "f: state 0: d_row_log_weights is wanted but the state has no row_log_weights");
}

TEST_CASE("check_merge_backward refuses gradients that overlap anything",
          "[merge_backward_arguments]") {
  const auto refused = [](const char* sentence, const auto& spoil) {
    CAPTURE(sentence);
    CHECK(refusal(spoil).starts_with(sentence));
  };
  refused(
      "f: state 1: d_o and d_o of the result overlap in memory: d_o covers 1280 bytes that "
      "begin 0 bytes from the begin of d_o of the result, which covers 1280",
      [](call& c) { c.gradients[1].d_o.data = c.inputs.data() + 2 * 320; });
  refused("f: state 1: d_o and d_lse of the result overlap in memory",
          [](call& c) { c.gradients[1].d_o.data = c.inputs.data() + 19; });
  refused("f: state 0: d_lse and d_o of the result overlap in memory",
          [](call& c) { c.gradients[0].d_lse.data = c.inputs.data() + 2 * 320; });
  refused("f: state 0: d_lse and o of a state overlap in memory",
          [](call& c) { c.gradients[0].d_lse.data = c.inputs.data() + 320; });
  refused("f: state 1: d_o and d_o overlap in memory",
          [](call& c) { c.gradients[1].d_o.data = c.gradients[0].d_o.data + 319; });
  refused("f: state 0: d_o and d_lse overlap in memory",
          [](call& c) { c.gradients[0].d_lse.data = c.gradients[0].d_o.data; });
  refused("f: state 0: d_row_log_weights and d_sink_logits overlap in memory", [](call& c) {
    c.gradients[0].d_row_log_weights.data = c.outputs.data() + c.outputs.size() - 20;
  });
  refused("f: d_sink_logits and sink_logits overlap in memory", [](call& c) {
    c.arguments.d_sink_logits = std::span<float>(c.inputs).first(4);
    c.arguments.d_lse = {};
    c.arguments.d_o.data = c.inputs.data() + 320;
    for (auto& state : c.states) {
      state.o.data = c.inputs.data() + 320;
      state.lse.data = state.row_log_weights.data = c.inputs.data() + 320;
    }
  });
}

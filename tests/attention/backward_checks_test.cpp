// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/attention/backward_checks.hpp>

#include "support/backward_errors.hpp"

using namespace blockattn;
using namespace blockattn_test;

TEST_CASE("check_backward refuses each bad argument in its own sentence") {
  check_backward_errors(
      "f", [](const backward_arguments<float>& arguments, const attention_options& options) {
        detail::check_backward("f", arguments, options);
      });
}

TEST_CASE("check_backward accepts what is unusual but right") {
  valid_backward_call valid;
  const auto accepted = [&](const auto& change) {
    backward_arguments<float> arguments = valid.arguments();
    change(arguments);
    return sentence_of([&] { detail::check_backward("f", arguments, {}); });
  };
  using arguments = backward_arguments<float>;
  CHECK(accepted([](arguments& a) { a.d_lse = {}; }) == "no error");
  CHECK(accepted([](arguments& a) { a.d_sink_logits = {}; }) == "no error");
  CHECK(accepted([](arguments& a) {
          a.sink_logits = {};
          a.d_sink_logits = {};
        }) == "no error");
  // Inputs may be read twice through any strides, 0 by name; gradients may run backwards.
  CHECK(accepted([](arguments& a) {
          a.d_o.token_stride = a.k.head_stride = a.lse.token_stride = 0;
          a.d_o.broadcast = a.k.broadcast = a.lse.broadcast = true;
          a.d_q.data += 4 * a.d_q.token_stride;
          a.d_q.token_stride = -a.d_q.token_stride;
        }) == "no error");
  // Empty tensors need neither memory nor strides.
  CHECK(sentence_of([] { detail::check_backward("f", arguments{}, {}); }) == "no error");
}

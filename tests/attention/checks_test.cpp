// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/attention/checks.hpp>

#include "support/forward_errors.hpp"

using namespace blockattn;
using namespace blockattn_test;

TEST_CASE("check_forward refuses each bad argument in its own sentence") {
  check_forward_errors(
      "f", [](const forward_arguments<float>& arguments, const attention_options& options) {
        detail::check_forward("f", arguments, options);
      });
}

TEST_CASE("check_forward accepts what is unusual but right") {
  valid_call valid;
  const auto accepted = [&](const auto& change) {
    forward_arguments<float> arguments = valid.arguments();
    attention_options options;
    change(arguments, options);
    return sentence_of([&] { detail::check_forward("f", arguments, options); });
  };
  using arguments = forward_arguments<float>;
  using options = attention_options;
  CHECK(accepted([](arguments& a, options&) { a.lse = {}; }) == "no error");
  CHECK(accepted([](arguments& a, options&) { a.sink_logits = {}; }) == "no error");
  CHECK(accepted([](arguments&, options& o) { o.scale = 0; }) == "no error");
  CHECK(accepted([](arguments&, options& o) { o = {.scale = -2, .softcap = 30}; }) == "no error");
  // Inputs may be read twice through any strides, 0 by name; outputs may run backwards.
  CHECK(accepted([](arguments& a, options&) {
          a.q.token_stride = a.k.head_stride = a.v.token_stride = 0;
          a.q.broadcast = a.k.broadcast = a.v.broadcast = true;
          a.k.token_stride = 3;
        }) == "no error");
  CHECK(accepted([](arguments& a, options&) {
          a.o.data += 4 * a.o.token_stride;
          a.lse.data += 4 * a.lse.token_stride;
          a.o.token_stride = -a.o.token_stride;
          a.lse.token_stride = -a.lse.token_stride;
        }) == "no error");
  // Empty tensors need neither memory nor strides.
  CHECK(sentence_of([] { detail::check_forward("f", arguments{}, {}); }) == "no error");
  CHECK(accepted([](arguments& a, options&) {
          a.q = {nullptr, 0, 4, 16, 0, 0};
          a.o = {nullptr, 0, 4, 24, 0, 0};
          a.lse.tokens = a.lse.head_stride = 0;
        }) == "no error");
  CHECK(accepted([](arguments& a, options&) {
          a.k = {nullptr, 0, 2, 16, 0, 0};
          a.v = {nullptr, 0, 2, 24, 0, 0};
        }) == "no error");
  CHECK(accepted([](arguments& a, options&) {
          a.q = {nullptr, 5, 0, 16, 0, 0};
          a.o = {nullptr, 5, 0, 24, 0, 0};
          a.lse = {};
          a.sink_logits = {};
        }) == "no error");
}

TEST_CASE("the default scale is 1 / sqrt(head_dim)") {
  CHECK(detail::resolved_scale({}, 64) == 0.125);
  CHECK(detail::resolved_scale(0.0, 64) == 0);
  CHECK(detail::resolved_scale(-3.0, 64) == -3);
}

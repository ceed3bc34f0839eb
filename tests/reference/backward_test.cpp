// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/reference/backward.hpp>
#include <blockattn/reference/forward.hpp>

#include "support/backward_errors.hpp"
#include "support/backward_identities.hpp"

using namespace blockattn;
using namespace blockattn_test;

namespace {

/// The reference as a backend: one mask.
struct reference_backend {
  template <class Arguments>
  void forward(const Arguments& arguments,
               const head_masks& masks,
               const attention_options& options = {}) const {
    reference::forward(arguments, masks.masks[0], options);
  }
  template <class Arguments>
  void backward(const Arguments& arguments,
                const head_masks& masks,
                const attention_options& options = {}) const {
    reference::backward(arguments, masks.masks[0], options);
  }
};

}  // namespace

TEST_CASE("reference::backward does a small case as by hand") {
  // Two keys with scores 0 and ln 3: weights 1/4 and 3/4, o = (1 * 10 + 3 * 30) / 4 = 25. Key 1,
  // which nobody sees, is NaN.
  const double nan = std::nan("");
  const double q[] = {std::log(3.0)}, k[] = {0, nan, 1}, v[] = {10, nan, 30}, o[] = {25};
  const double lse[] = {std::log(4.0)}, d_o[] = {2};
  double d_q[] = {nan}, d_k[] = {nan, nan, nan}, d_v[] = {nan, nan, nan};
  const auto mask = attention_mask::from_disjoint_slices(
      1, 3, {{.queries = {0, 1}, .keys = {0, 1}}, {.queries = {0, 1}, .keys = {2, 3}}});
  backward_arguments<double> arguments = {.q = token_major(q, 1, 1, 1),
                                          .k = token_major(k, 3, 1, 1),
                                          .v = token_major(v, 3, 1, 1),
                                          .o = token_major(o, 1, 1, 1),
                                          .lse = token_major_lse(lse, 1, 1),
                                          .d_o = token_major(d_o, 1, 1, 1),
                                          .d_q = token_major(d_q, 1, 1, 1),
                                          .d_k = token_major(d_k, 3, 1, 1),
                                          .d_v = token_major(d_v, 3, 1, 1)};
  reference::backward(arguments, mask, {.scale = 1});
  // delta = 50; d_s = 1/4 (20 - 50) = -7.5 and 3/4 (60 - 50) = 7.5.
  CHECK(d_q[0] == Approx(7.5).epsilon(1e-15));
  CHECK(d_k[0] == Approx(-7.5 * std::log(3.0)).epsilon(1e-15));
  CHECK(d_k[1] == 0);
  CHECK(d_k[2] == Approx(7.5 * std::log(3.0)).epsilon(1e-15));
  CHECK(d_v[0] == Approx(0.5).epsilon(1e-15));
  CHECK(d_v[1] == 0);
  CHECK(d_v[2] == Approx(1.5).epsilon(1e-15));

  // A gradient of 4 for lse adds 4 p to every d_s.
  const double d_lse[] = {4};
  arguments.d_lse = token_major_lse(d_lse, 1, 1);
  reference::backward(arguments, mask, {.scale = 1});
  CHECK(d_q[0] == Approx(10.5).epsilon(1e-15));
  CHECK(d_v[2] == Approx(1.5).epsilon(1e-15));

  // A sink logit that takes half of the weight: o = 12.5, weights 1/8 and 3/8.
  const double sunk_o[] = {12.5}, sunk_lse[] = {std::log(8.0)}, sink[] = {std::log(4.0)};
  double d_sink[] = {nan};
  arguments.o = token_major(sunk_o, 1, 1, 1);
  arguments.lse = token_major_lse(sunk_lse, 1, 1);
  arguments.sink_logits = sink;
  arguments.d_sink_logits = d_sink;
  reference::backward(arguments, mask, {.scale = 1});
  CHECK(d_sink[0] == Approx(0.5 * (4 - 25)).epsilon(1e-15));
  CHECK(d_v[2] == Approx(0.75).epsilon(1e-15));
}

TEST_CASE("reference::backward is the change of the loss") {
  for_random_seeds(100, 25, [](random_source& random) {
    check_backward_differences(reference_backend{}, random);
  });
}

TEST_CASE("reference::backward adds up over parts") {
  for_random_seeds(200, 6, [](random_source& random) {
    check_gradient_partition<double>(reference_backend{}, random);
  });
}

TEST_CASE("reference::backward refuses each bad argument in its own sentence") {
  const attention_mask mask =
      full_mask(valid_backward_call::query_tokens, valid_backward_call::key_tokens);
  check_backward_errors("reference::backward", [&](const backward_arguments<float>& arguments,
                                                   const attention_options& options) {
    reference::backward(arguments, mask, options);
  });
  valid_backward_call valid;
  CHECK(sentence_of([&] { reference::backward(valid.arguments(), full_mask(7, 5)); }) ==
        "reference::backward: the mask is for 7 queries x 5 keys, q and k have 5 and 7 tokens");
  CHECK(valid.outputs_untouched());
}

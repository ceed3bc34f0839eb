// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/reference/forward.hpp>

#include "support/forward_errors.hpp"
#include "support/naive_attention.hpp"
#include "support/plain_tensors.hpp"

using namespace blockattn;
using namespace blockattn_test;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Two queries and three keys small enough to do by hand: query 0 sees key 0, query 1 sees keys 0
/// and 2 with scores ln 1 and ln 3. Key 1, which nobody sees, is NaN.
struct golden_call {
  double q[2] = {5, std::log(3.0)};
  double k[3] = {0, std::nan(""), 1};
  double v[6] = {10, 20, std::nan(""), std::nan(""), 30, -20};
  double o[4] = {};
  double lse[2] = {};
  attention_mask mask = attention_mask::from_disjoint_slices(
      2, 3, {{.queries = {0, 2}, .keys = {0, 1}}, {.queries = {1, 2}, .keys = {2, 3}}});

  void run(std::span<const double> sinks = {}, attention_options options = {.scale = 1}) {
    reference::forward<double>({.q = token_major<const double>(q, 2, 1, 1),
                                .k = token_major<const double>(k, 3, 1, 1),
                                .v = token_major<const double>(v, 3, 1, 2),
                                .o = token_major(o, 2, 1, 2),
                                .lse = token_major_lse(lse, 2, 1),
                                .sink_logits = sinks},
                               mask, options);
  }
};

/// The reference as a backend: one mask.
struct reference_backend {
  template <class Arguments>
  void forward(const Arguments& arguments,
               const head_masks& masks,
               const attention_options& options = {}) const {
    reference::forward(arguments, masks.masks[0], options);
  }
};

}  // namespace

TEST_CASE("reference::forward does small cases as by hand") {
  golden_call call;
  call.run();
  CHECK(call.o[0] == 10);
  CHECK(call.o[1] == 20);
  CHECK(call.lse[0] == 0);
  CHECK(call.o[2] == Approx(0.25 * 10 + 0.75 * 30).epsilon(1e-15));
  CHECK(call.o[3] == Approx(0.25 * 20 - 0.75 * 20).epsilon(1e-15));
  CHECK(call.lse[1] == Approx(std::log(4.0)).epsilon(1e-15));

  const double sink = std::log(4.0);  // as much as both keys together
  call.run({&sink, 1});
  CHECK(call.o[2] == Approx(12.5).epsilon(1e-15));
  CHECK(call.lse[1] == Approx(std::log(8.0)).epsilon(1e-15));
  CHECK(call.lse[0] == Approx(std::log(5.0)).epsilon(1e-15));

  const double scale = 1000;  // tanh is 1: the scores are 0 and the cap
  call.run({}, {.scale = scale, .softcap = std::log(3.0)});
  CHECK(call.o[2] == Approx(25.0).epsilon(1e-14));
  call.run({}, {.scale = 0, .softcap = 2});
  CHECK(call.o[2] == Approx(20.0).epsilon(1e-15));
  CHECK(call.lse[1] == Approx(std::log(2.0)).epsilon(1e-15));
  call.run({}, {.scale = -1});
  CHECK(call.o[2] == Approx(0.75 * 10 + 0.25 * 30).epsilon(1e-15));
}

TEST_CASE("reference::forward gives a row that sees nothing o = 0 and its sink logit") {
  golden_call call;
  call.mask = attention_mask::from_disjoint_slices(2, 3, {{.queries = {1, 2}, .keys = {0, 1}}});
  call.q[0] = std::nan("");
  call.run();
  CHECK(call.o[0] == 0);
  CHECK(call.o[1] == 0);
  CHECK(call.lse[0] == -infinity);
  CHECK(call.o[2] == 10);
  const double sink = -2.5;
  call.run({&sink, 1});
  CHECK(call.o[0] == 0);
  CHECK(call.lse[0] == -2.5);
  const double absent = -infinity;
  call.run({&absent, 1});
  CHECK(call.lse[0] == -infinity);
  CHECK(call.o[2] == 10);
}

TEMPLATE_TEST_CASE(
    "reference::forward equals naive attention in long double", "", float, double, bfloat16) {
  for_random_seeds(50, 40, [](random_source& random) {
    const named_mask drawn = random_attention_mask(random, 12);
    const attention_mask& mask = drawn.mask;
    const plain_sizes sizes = {.query_heads = 2 * random.integer(1, 2),
                               .kv_heads = 2,
                               .head_dim = random.integer(1, 20),
                               .value_dim = random.integer(1, 20)};
    const plain_inputs<TestType> in =
        random_inputs<TestType>(random, mask.query_tokens(), mask.key_tokens(), sizes);
    plain_options<TestType> options;
    if (random.chance(0.5)) options.attention.scale = random.real(-1, 1);
    if (random.chance(0.3)) options.attention.softcap = random.real(0.5, 4);
    if (random.chance(0.3)) {
      options.sink_logits.assign(static_cast<std::size_t>(sizes.query_heads), 0.75F);
    }
    const auto out = run_forward(reference_backend{}, in, mask, options);
    const auto exact = naive_attention<long double>(
        forward_arguments<TestType>{
            .q = token_major(in.q.data(), in.queries(), sizes.query_heads, sizes.head_dim),
            .k = token_major(in.k.data(), in.keys(), sizes.kv_heads, sizes.head_dim),
            .v = token_major(in.v.data(), in.keys(), sizes.kv_heads, sizes.value_dim),
            .o = {},
            .sink_logits = options.sink_logits},
        mask, options.attention, no_rounding{});
    INFO(drawn.kind);
    REQUIRE(out.o.size() == exact.o.size());
    // One rounding to the storage; 0x1p-60 for long double, 0x1p-50 for fp64 where o cancels.
    const double roundoff = format_of<TestType> == storage_format::bf16   ? 0x1p-8
                            : format_of<TestType> == storage_format::fp32 ? 0x1p-24
                                                                          : 0x1p-53;
    const double lse_roundoff = sizeof(TestType) == 8 ? 0x1p-53 : 0x1p-24;
    const double slack = sizeof(TestType) == 8 ? 0x1p-58 : 0x1p-48;
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < out.o.size(); ++i) {
      const auto value = static_cast<long double>(load_scalar(out.o[i]));
      const long double bound = roundoff * std::abs(exact.o[i]) + slack;
      wrong += std::abs(value - exact.o[i]) <= bound ? 0U : 1U;
    }
    for (std::size_t i = 0; i < out.lse.size(); ++i) {
      const auto value = static_cast<long double>(out.lse[i]);
      const long double bound = lse_roundoff * std::abs(exact.lse[i]) + slack;
      wrong += value == exact.lse[i] || std::abs(value - exact.lse[i]) <= bound ? 0U : 1U;
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("reference::forward refuses what every backend refuses, and a mask of another size") {
  const attention_mask mask = full_mask(valid_call::query_tokens, valid_call::key_tokens);
  check_forward_errors("reference::forward", [&](const forward_arguments<float>& arguments,
                                                 const attention_options& options) {
    reference::forward(arguments, mask, options);
  });
  valid_call valid;
  CHECK(sentence_of([&] { reference::forward(valid.arguments(), full_mask(5, 8)); }) ==
        "reference::forward: the mask is for 5 queries x 8 keys, q and k have 5 and 7 tokens");
  CHECK(valid.outputs_untouched());
}

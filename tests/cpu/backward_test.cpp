// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <Eigen/Core>
#include <blockattn/cpu/tile_shape.hpp>

#include "cpu/cpu_backend.hpp"
#include "support/backward_oracle.hpp"
#include "support/example_cases.hpp"
#include "support/plain_gradients.hpp"

using namespace blockattn;
using namespace blockattn_test;

namespace {

template <class T>
void check_plain(const attention_case& c) {
  check_backward_case<T, T, T, T>(cpu_backend{}, c);
}

}  // namespace

// Each test draws its own calls.

TEST_CASE("cpu::backward equals the reference in fp32") {
  check_random_backward_cases<float, float, float, float>(cpu_backend{}, 1000, 60);
}

TEST_CASE("cpu::backward equals the reference in fp64") {
  check_random_backward_cases<double, double, double, double>(cpu_backend{}, 2000, 30);
}

// Scores of 1000 and more, whose last digit is worth 6e-5: a score and its lse have to agree in it.
TEMPLATE_TEST_CASE("a key that outscores all others has a weight of exactly 1", "", float, double) {
  const plain_sizes sizes{.query_heads = 1, .kv_heads = 1, .head_dim = 40, .value_dim = 16};
  random_source random(test_seed(2500));
  for (const double scale : {1.0, 0.3, -0.3}) {
    for (const double softcap : {0.0, 70.0, 3000.0}) {
      for (const TestType sink : {-std::numeric_limits<TestType>::infinity(), TestType(-60)}) {
        for (int draw = 0; draw < 10; ++draw) {
          CAPTURE(scale, softcap, sink, draw);
          plain_inputs<TestType> in = random_inputs<TestType>(random, 1, 20, sizes);
          for (TestType& value : in.q) value *= TestType(30);
          for (TestType& value : in.k) value *= TestType(0.05);
          for (std::size_t t = 0; t < in.q.size(); ++t) {
            in.k[7 * in.q.size() + t] = in.q[t] * static_cast<TestType>(scale < 0 ? -0.13 : 0.13);
          }
          const plain_loss<TestType> loss = random_loss(random, in, false);
          const plain_gradients<TestType> g = run_gradients(
              cpu_backend{}, in, loss, full_mask(1, 20),
              {.attention = {.scale = scale, .softcap = softcap}, .sink_logits = {sink}});
          for (std::size_t t = 0; t < 16; ++t) CHECK(g.d_v[7 * 16 + t] == loss.d_o[t]);
        }
      }
    }
  }
}

TEST_CASE("cpu::backward equals the reference in bf16") {
  check_random_backward_cases<bfloat16, bfloat16, bfloat16, bfloat16>(cpu_backend{}, 3000, 40);
}

TEST_CASE("cpu::backward equals the reference in bf16 with fp32 gradients") {
  check_random_backward_cases<bfloat16, bfloat16, bfloat16, bfloat16, float, float, float>(
      cpu_backend{}, 4000, 20);
}

TEST_CASE("cpu::backward equals the reference with seven storage types") {
  check_random_backward_cases<bfloat16, float16, float, Eigen::half, float, Eigen::bfloat16,
                              float16>(cpu_backend{}, 5000, 20);
}

TEST_CASE("cpu::backward equals the reference around vector and tile widths") {
  for (const index_t n : {1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257}) {
    const tile_shape shape = cpu::tile_shape_for<float>(16);
    check_plain<float>(plain_case(causal_mask(n), shape, 16));
    check_plain<float>(plain_case(full_mask(3, n), shape, 16));
    check_plain<float>(plain_case(full_mask(n, 3), shape, 16));
    // Without the first and the last key.
    const slice inner = {.queries = {0, n}, .keys = {1, std::max<index_t>(1, n - 1)}};
    check_plain<float>(plain_case(attention_mask::from_disjoint_slices(n, n, {inner}), shape, 16));
    check_plain<double>(plain_case(causal_mask(n), {32, 32}, 8));
  }
}

TEST_CASE("cpu::backward equals the reference for every head dim") {
  for (index_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    attention_case c = plain_case(causal_mask(19), {8, 16}, head_dim);
    c.value_dim = 264 - head_dim;
    check_plain<float>(c);
  }
}

TEST_CASE("cpu::backward sums d_q over many key chunks") {
  // One kv head: eight chunks, each with sums of its own.
  attention_case c =
      plain_case(block_attention_mask(layout_of({100, 7, 150, 0, 90, 40})), {16, 24}, 24);
  c.query_heads = 3;
  check_plain<float>(c);
  c.masks.masks[0] = causal_mask(300);
  check_plain<float>(c);
  check_plain<double>(c);
}

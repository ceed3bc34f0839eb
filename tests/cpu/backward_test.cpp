// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <Eigen/Core>
#include <blockattn/cpu/tile_shape.hpp>

#include "cpu/cpu_backend.hpp"
#include "support/backward_oracle.hpp"
#include "support/example_cases.hpp"

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

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/attend_blocks.hpp>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "support/attend_examples.hpp"
#include "support/attend_oracle.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/shuffling_executor.hpp"

using namespace blockattn_test;

namespace {

template <class O, class C>
bool same_bits(const heads_view<O>& a,
               const heads_view<O>& b,
               const lse_view<C>& a_lse,
               const lse_view<C>& b_lse) {
  for (index_t token = 0; token < a.tokens; ++token) {
    for (index_t head = 0; head < a.heads; ++head) {
      const auto bytes = static_cast<std::size_t>(a.head_dim) * sizeof(O);
      if (std::memcmp(a.row(token, head), b.row(token, head), bytes) != 0) return false;
      if (a_lse && std::memcmp(&a_lse.at(token, head), &b_lse.at(token, head), sizeof(C)) != 0)
        return false;
    }
  }
  return true;
}

/// Right within the bound, nothing else written, same bits with any workers and order of tasks in
/// a workspace of exactly the size asked for.
template <class Q, class K, class V, class O>
void check_case(const attend_case& c) {
  CAPTURE(c.describe());
  const attend_tensors<Q, K, V, O> serial(c);
  cpu::attend_blocks<Q, K, V, O>(serial.arguments(), serial.options());
  CHECK(largest_attend_error(serial.arguments(), serial.options()) <= 1);
  CHECK(serial.others_untouched());

  const attend_tensors<Q, K, V, O> shuffled(c);
  shuffling_executor workers(3, c.seed);
  const auto arguments = shuffled.arguments();
  const auto job = cpu::prepare_attend_blocks<Q, K, V, O>(arguments, shuffled.options());
  const index_t size = cpu::workspace_size(job, workers.concurrency());
  const workspace_buffer buffer(size + 64);
  std::memset(buffer.bytes().data(), 0xff, buffer.bytes().size());
  const auto exact = buffer.bytes().first(static_cast<std::size_t>(size));
  cpu::attend_blocks<Q, K, V, O>(shuffled.arguments(), shuffled.options(), workers, exact);
  CHECK(same_bits(serial.arguments().o, shuffled.arguments().o, serial.arguments().lse,
                  shuffled.arguments().lse));
  CHECK(shuffled.others_untouched());
  for (const std::byte byte : buffer.bytes().subspan(exact.size())) CHECK(byte == std::byte{0xff});
}

void check_cases(const std::vector<attend_case>& cases) {
  for (const attend_case& c : cases) check_case<float, float, float, float>(c);
}

template <class Q, class K, class V, class O>
void check_random_cases(std::uint64_t default_seed, int count) {
  const std::uint64_t seed = test_seed(default_seed);
  for (int i = 0; i < test_cases(count); ++i) {
    check_case<Q, K, V, O>(random_attend_case(seed + static_cast<std::uint64_t>(i)));
  }
}

}  // namespace

TEST_CASE("attend_blocks equals its formula on random calls, fp32", "[attend_blocks]") {
  check_random_cases<float, float, float, float>(1000, 60);
}

TEST_CASE("attend_blocks equals its formula on random calls, fp64", "[attend_blocks]") {
  check_random_cases<double, double, double, double>(2000, 20);
}

TEST_CASE("attend_blocks equals its formula on random calls, 16-bit storage", "[attend_blocks]") {
  check_random_cases<bfloat16, bfloat16, bfloat16, bfloat16>(3000, 25);
  check_random_cases<float16, float16, float16, float16>(4000, 25);
}

TEST_CASE("attend_blocks equals its formula on random calls, mixed storage", "[attend_blocks]") {
  check_random_cases<float, float16, float16, float>(5000, 25);
  check_random_cases<float, bfloat16, float, float>(6000, 25);
  check_random_cases<bfloat16, float, bfloat16, float>(7000, 25);
}

TEST_CASE("attend_blocks takes every head dimension, with few rows and with many",
          "[attend_blocks]") {
  check_cases(attend_head_dims());
}

TEST_CASE("attend_blocks takes every GQA ratio", "[attend_blocks]") {
  check_cases(attend_gqa_ratios());
}

TEST_CASE("attend_blocks around the sizes of its tiles and chunks", "[attend_blocks]") {
  // Row tiles of 192 rows, register tiles of 6 or 8, key tiles of 256, key chunks of 512.
  check_cases(attend_sizes_of({1, 5, 6, 7, 8, 9, 191, 192, 193}, {1, 255, 256, 257}));
  check_cases(attend_sizes_of({2}, {511, 512, 513, 1024, 1025, 9000}));
}

TEST_CASE("attend_blocks with nothing to do or nothing to see", "[attend_blocks]") {
  check_cases(attend_empty());
}

TEST_CASE("attend_blocks accepts tensors without heads", "[attend_blocks]") {
  const heads_view<const float> none{nullptr, 3, 0, 8, 0, 0};
  const std::vector<key_segment<>> segments = {{.k = none, .v = none}};
  const std::vector<attend_sequence<>> sequences = {{.queries = {0, 2}, .segments = segments}};
  CHECK_NOTHROW(cpu::attend_blocks<float>(
      {.q = {nullptr, 2, 0, 8, 0, 0}, .o = {nullptr, 2, 0, 8, 0, 0}, .sequences = sequences}));
}

TEST_CASE("turning queries and turning keys give the same result", "[attend_blocks]") {
  // 24 rows meet 5 keys under each shift: fewer keys than rows, so keys are turned. One row at a
  // time, or 30 keys under one shift, and queries are turned. Scores agree within a rotation and a
  // dot product, 8 u |q| |k| / sqrt(d) < 1e-5 here, outputs within twice that times |v| < 5.
  const std::uint64_t seed = test_seed(8400);
  CAPTURE(seed);
  for (const rope_pairing pairing : {rope_pairing::half_split, rope_pairing::interleaved}) {
    for (const double scale : {0.25, -0.25}) {
      attend_case c{.seed = seed,
                    .query_tokens = 12,
                    .query_heads = 2,
                    .head_dim = 64,
                    .value_dim = 32,
                    .scale = scale,
                    .rotation = {.rotary_dim = 48, .pairing = pairing},
                    .sequences = {{.queries = {0, 12}}}};
      for (int block = 0; block < 6; ++block)
        c.sequences[0].segments.push_back({.keys = 5, .query_shift = -100.0 * block});
      check_case<float, float, float, float>(c);
      check_case<float, bfloat16, bfloat16, float>(c);

      const attend_tensors<float, float, float, float> together(c);
      cpu::attend_blocks<float>(together.arguments(), together.options());
      const attend_tensors<float, float, float, float> alone(c);
      auto arguments = alone.arguments();
      std::vector<attend_sequence<>> rows;
      for (index_t row = 0; row < 12; ++row)
        rows.push_back({.queries = {row, row + 1}, .segments = arguments.sequences[0].segments});
      arguments.sequences = rows;
      cpu::attend_blocks<float>(arguments, alone.options());
      float largest = 0;
      for (index_t row = 0; row < 12; ++row) {
        for (index_t head = 0; head < 2; ++head) {
          for (index_t t = 0; t < 32; ++t) {
            const float difference =
                std::abs(together.arguments().o.row(row, head)[t] - arguments.o.row(row, head)[t]);
            if (!(difference <= largest)) largest = difference;
          }
        }
      }
      CHECK(largest <= 1e-4F);
    }
  }
}

TEST_CASE("attend_blocks refuses bad calls before it writes", "[attend_blocks]") {
  const attend_case c{.query_tokens = 3,
                      .query_heads = 2,
                      .sequences = {{.queries = {0, 3}, .segments = {{.keys = 700}}}}};
  const attend_tensors<float, float, float, float> tensors(c);
  const auto arguments = tensors.arguments();
  serial_executor serial;
  const auto size = static_cast<std::size_t>(
      cpu::workspace_size(cpu::prepare_attend_blocks<float>(arguments, tensors.options()), 1));
  const workspace_buffer buffer(static_cast<index_t>(size) + 64);
  CHECK_THROWS_WITH(cpu::attend_blocks<float>(arguments, tensors.options(), serial,
                                              buffer.bytes().first(size - 1)),
                    "cpu::attend_blocks: workspace has " + std::to_string(size - 1) +
                        " bytes, needs " + std::to_string(size));
  CHECK_THROWS_WITH(
      cpu::attend_blocks<float>(arguments, tensors.options(), serial, buffer.bytes().subspan(4)),
      contains("workspace is 4 bytes past a multiple of 64"));
  CHECK_THROWS_WITH(cpu::attend_blocks<float>(arguments, {.softcap = -1}),
                    contains("options.softcap is -1"));
  CHECK(tensors.outputs_untouched());

  for (const index_t dim : {0, 4, 12, 264}) {
    const std::vector<float> q(300);
    std::vector<float> o(300);
    const auto named = [&](index_t q_dim, index_t o_dim) {
      cpu::attend_blocks<float>({.q = token_major<const float>(q.data(), 1, 1, q_dim),
                                 .o = token_major(o.data(), 1, 1, o_dim)});
    };
    const std::string text =
        "is " + std::to_string(dim) + ", must be a multiple of 8 from 8 to 256";
    CHECK_THROWS_WITH(named(dim, 8), "cpu::attend_blocks: q.head_dim " + text);
    CHECK_THROWS_WITH(named(8, dim), "cpu::attend_blocks: o.head_dim " + text);
  }
}

TEST_CASE("engine threads run attend_blocks phase by phase", "[attend_blocks]") {
  attend_case c = {.seed = test_seed(8500),
                   .query_tokens = 40,
                   .query_heads = 4,
                   .kv_heads = 2,
                   .sequences = {{.queries = {0, 3}, .segments = {{.keys = 3000}}},
                                 {.queries = {3, 40}, .segments = {{.keys = 30}}}}};
  const attend_tensors<float, float, float, float> serial(c);
  cpu::attend_blocks<float>(serial.arguments(), serial.options());
  const attend_tensors<float, float, float, float> threaded(c);
  const auto arguments = threaded.arguments();
  const auto job = cpu::prepare_attend_blocks<float>(arguments, threaded.options());
  constexpr index_t threads = 3;
  const workspace_buffer workspace(cpu::workspace_size(job, threads));
  for (index_t phase = 0; phase < job.phases(); ++phase) {
    std::vector<std::thread> team;
    for (index_t ith = 0; ith < threads; ++ith) {
      team.emplace_back([&, ith] {
        for (index_t task = ith; task < job.tasks(phase); task += threads)
          job.run(phase, task, ith, workspace.bytes());
      });
    }
    for (std::thread& thread : team) thread.join();
  }
  CHECK(same_bits(serial.arguments().o, threaded.arguments().o, serial.arguments().lse,
                  threaded.arguments().lse));
}

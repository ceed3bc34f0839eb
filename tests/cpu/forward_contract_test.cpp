// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <barrier>
#include <blockattn/core/eigen_executor.hpp>
#include <thread>

#include "cpu/cpu_backend.hpp"
#include "support/allocation_count.hpp"
#include "support/example_cases.hpp"
#include "support/forward_errors.hpp"
#include "support/forward_oracle.hpp"
#include "support/plain_tensors.hpp"
#include "support/shuffling_executor.hpp"

using namespace blockattn;
using namespace blockattn_test;

// DESIGN.md, section 6, point by point.

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// A case with its plans and tensors, ready to run in any way.
template <class T>
struct prepared_case {
  explicit prepared_case(const attention_case& c)
      : plans(c.masks.make_plans()), masks(c.masks), options(c.options), tensors(c) {}

  plan_set set() const { return plan_set(plans, masks.head_to_mask); }
  auto job() const { return cpu::prepare_forward(tensors.arguments(), set(), options); }
  bool same_bits(const prepared_case& other) const {
    return tensors.o.same_bits(other.tensors.o) && tensors.lse.same_bits(other.tensors.lse);
  }

  std::vector<tile_plan> plans;
  head_masks masks;
  attention_options options;
  attention_tensors<T, T, T, T> tensors;
};

}  // namespace

TEST_CASE("1. a row that sees nothing is 0 with lse = -inf or its sink logit") {
  const auto mask = attention_mask::from_disjoint_slices(
      40, 40, {{.queries = {3, 4}, .keys = {5, 9}}, {.queries = {20, 40}, .keys = {33, 40}}});
  for (const bool with_sinks : {false, true}) {
    random_source random(1);
    plain_inputs<float> in = random_inputs<float>(random, 40, 40);
    // Rows that see nothing may hold anything themselves.
    std::fill_n(in.q.begin(), in.sizes.query_heads * in.sizes.head_dim, std::nanf(""));
    plain_options<float> options;
    if (with_sinks) options.sink_logits = {0.5F, -infinity, 100, -3};
    const plain_outputs<float> out = run_forward(cpu_backend{}, in, mask, options);
    for (index_t i = 0; i < 40; ++i) {
      if (i == 3 || i >= 20) continue;
      CAPTURE(i, with_sinks);
      CHECK(std::count(out.o_row(i), out.o_row(i + 1), 0.0F) == out.heads * out.value_dim);
      for (index_t h = 0; h < out.heads; ++h) {
        CHECK(out.lse_row(i)[h] ==
              (with_sinks ? options.sink_logits[static_cast<std::size_t>(h)] : -infinity));
      }
    }
  }
}

TEMPLATE_TEST_CASE("1. a key that no row sees may hold anything", "", float, bfloat16, double) {
  // Unseen keys at the start, at the end, and in the middle of panels and pairs.
  const std::vector<slice> slices = {{.queries = {0, 50}, .keys = {3, 10}},
                                     {.queries = {10, 50}, .keys = {11, 60}},
                                     {.queries = {0, 20}, .keys = {63, 97}}};
  const auto mask = attention_mask::from_disjoint_slices(50, 100, slices);
  random_source random(2);
  const plain_inputs<TestType> clean = random_inputs<TestType>(random, 50, 100);
  const plain_outputs<TestType> expected = run_forward(cpu_backend{}, clean, mask);
  for (const double poison : {std::nan(""), HUGE_VAL, -HUGE_VAL, 3e38}) {
    plain_inputs<TestType> in = clean;
    const plain_sizes& s = in.sizes;
    for (const index_t key : {0, 1, 2, 10, 60, 61, 62, 97, 98, 99}) {
      for (index_t t = 0; t < s.kv_heads * s.head_dim; ++t)
        store_scalar(in.k[static_cast<std::size_t>(key * s.kv_heads * s.head_dim + t)], poison);
      for (index_t t = 0; t < s.kv_heads * s.value_dim; ++t)
        store_scalar(in.v[static_cast<std::size_t>(key * s.kv_heads * s.value_dim + t)], poison);
    }
    CAPTURE(poison);
    CHECK(same_bits(run_forward(cpu_backend{}, in, mask), expected));
  }
}

TEST_CASE("1. a key that no row of its kv head sees may hold anything") {
  // Heads 0 and 1 share kv head 0 and see all, heads 2 and 3 share kv head 1 and do not see key 5.
  const tile_plan plans[] = {
      make_tile_plan(full_mask(9, 20), {8, 16}),
      make_tile_plan(
          attention_mask::from_disjoint_slices(
              9, 20, {{.queries = {0, 9}, .keys = {0, 5}}, {.queries = {0, 9}, .keys = {6, 20}}}),
          {8, 16})};
  const index_t head_to_plan[] = {0, 0, 1, 1};
  std::vector<bfloat16> q(9 * 4 * 8, bfloat16{0x3f80}), k(20 * 2 * 8, bfloat16{0x3f80}),
      v = k, o(q.size());
  std::fill_n(v.begin() + (5 * 2 + 1) * 8, 8, bfloat16{0x7fc0});  // NaN in key 5 of kv head 1
  cpu::forward<bfloat16>({.q = token_major<const bfloat16>(q.data(), 9, 4, 8),
                          .k = token_major<const bfloat16>(k.data(), 20, 2, 8),
                          .v = token_major<const bfloat16>(v.data(), 20, 2, 8),
                          .o = token_major(o.data(), 9, 4, 8)},
                         plan_set(plans, head_to_plan));
  CHECK(std::all_of(o.begin(), o.end(), [](bfloat16 x) { return x.bits == 0x3f80; }));
}

TEST_CASE("NaN and scores beyond fp32 are never taken for a row that sees nothing") {
  const tile_plan plan = make_tile_plan(causal_mask(40), {16, 32});
  for (const float bad : {std::nanf(""), 1e30F}) {  // 1e30 * 1e30 is no fp32 number
    std::vector<float> q(40 * 8, 1.0F), k(40 * 8, 1.0F), v(40 * 8, 1.0F), o(40 * 8), lse(40);
    std::fill_n(q.begin() + 20 * 8, 8, bad);
    if (!std::isnan(bad)) std::fill(k.begin(), k.end(), bad);
    const forward_arguments<float> arguments{.q = token_major<const float>(q.data(), 40, 1, 8),
                                             .k = token_major<const float>(k.data(), 40, 1, 8),
                                             .v = token_major<const float>(v.data(), 40, 1, 8),
                                             .o = token_major(o.data(), 40, 1, 8),
                                             .lse = token_major_lse(lse.data(), 40, 1)};
    cpu::forward(arguments, plan);
    CAPTURE(bad);
    CHECK(std::isnan(o[20 * 8]));
    CHECK(!std::isfinite(lse[20]));
    CHECK(lse[20] != -infinity);
    CHECK(o[19 * 8] == 1.0F);
    if (!std::isnan(bad)) continue;
    reference::forward(arguments, causal_mask(40));
    CHECK(std::isnan(o[20 * 8]));
    CHECK(std::isnan(lse[20]));
  }
}

TEST_CASE("1. a huge key reaches only the rows that see it") {
  const auto mask = attention_mask::from_disjoint_slices(
      9, 40, {{.queries = {0, 9}, .keys = {0, 20}}, {.queries = {4, 5}, .keys = {20, 40}}});
  random_source random(3);
  const plain_inputs<float> small = random_inputs<float>(random, 9, 40);
  plain_inputs<float> huge = small;
  const plain_sizes& s = small.sizes;
  std::fill_n(huge.k.begin() + 22 * s.kv_heads * s.head_dim, s.kv_heads * s.head_dim, 3e38F);
  std::fill_n(huge.v.begin() + 22 * s.kv_heads * s.value_dim, s.kv_heads * s.value_dim, 3e38F);
  const plain_outputs<float> a = run_forward(cpu_backend{}, small, mask);
  const plain_outputs<float> b = run_forward(cpu_backend{}, huge, mask);
  for (index_t i = 0; i < 9; ++i) CHECK(same_bits(a, i, b, i) == (i != 4));
}

TEMPLATE_TEST_CASE("3. every executor gives the same bits", "", float, bfloat16) {
  const prepared_case<TestType> serial(rich_case(64));
  cpu::forward(serial.tensors.arguments(), serial.set(), serial.options);
  CHECK(forward_oracle(serial.tensors, rich_case(64)).first_difference(serial.tensors) == "");
  for (const index_t workers : {1, 2, 7}) {
    const prepared_case<TestType> shuffled(rich_case(64));
    shuffling_executor executor(workers, test_seed(31) + static_cast<std::uint64_t>(workers));
    cpu::forward(shuffled.tensors.arguments(), shuffled.set(), shuffled.options, executor);
    CHECK(shuffled.same_bits(serial));

    const prepared_case<TestType> pooled(rich_case(64));
    Eigen::ThreadPool pool(static_cast<int>(workers));
    cpu::forward(pooled.tensors.arguments(), pooled.set(), pooled.options, eigen_executor(pool));
    CHECK(pooled.same_bits(serial));
  }
}

TEST_CASE("3. threads that an engine brings give the same bits") {
  const prepared_case<float> serial(rich_case(64));
  cpu::forward(serial.tensors.arguments(), serial.set(), serial.options);
  const prepared_case<float> threaded(rich_case(64));
  const auto job = threaded.job();
  constexpr index_t nth = 3;
  const workspace_buffer workspace(cpu::workspace_size(job, nth));
  std::barrier phase_done(nth);
  const auto work = [&](index_t ith) {
    for (index_t phase = 0; phase < job.phases(); ++phase) {
      for (index_t task = ith; task < job.tasks(phase); task += nth)
        job.run(phase, task, ith, workspace.bytes());
      phase_done.arrive_and_wait();
    }
  };
  std::vector<std::thread> threads;
  for (index_t ith = 0; ith < nth; ++ith) threads.emplace_back(work, ith);
  for (std::thread& thread : threads) thread.join();
  CHECK(threaded.same_bits(serial));
}

#if defined(__linux__)
TEST_CASE("4. strides and offsets beyond 2^31 elements") {
  // One mapping holds q, k, v, o and lse; pages that nobody touches cost nothing.
  constexpr index_t stride = (index_t{1} << 31) + 40;
  constexpr std::size_t bytes = (stride + 5 * 64) * sizeof(float);
  void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    WARN("skipped: no room for 8 GiB of addresses");
    return;
  }
  float* const base = static_cast<float*>(mapping);
  const auto far = [&](index_t offset) {
    return heads_view<float>{base + offset, 2, 1, 16, stride, 16};
  };
  random_source random(4);
  const plain_sizes sizes = {.query_heads = 1, .kv_heads = 1, .head_dim = 16, .value_dim = 16};
  const plain_inputs<float> in = random_inputs<float>(random, 2, 2, sizes);
  for (index_t token = 0; token < 2; ++token) {
    std::copy_n(in.q.begin() + token * 16, 16, far(0).row(token, 0));
    std::copy_n(in.k.begin() + token * 16, 16, far(64).row(token, 0));
    std::copy_n(in.v.begin() + token * 16, 16, far(128).row(token, 0));
  }
  cpu_backend{}.forward(forward_arguments<float>{.q = far(0),
                                                 .k = far(64),
                                                 .v = far(128),
                                                 .o = far(192),
                                                 .lse = {base + 256, 2, 1, stride, 1}},
                        head_masks(causal_mask(2), {16, 32}));
  const plain_outputs<float> expected = run_forward(cpu_backend{}, in, causal_mask(2));
  for (index_t token = 0; token < 2; ++token) {
    CHECK(std::equal(expected.o_row(token), expected.o_row(token + 1), far(192).row(token, 0)));
    CHECK(base[256 + token * stride] == expected.lse_row(token)[0]);
  }
  munmap(mapping, bytes);
}
#endif

TEST_CASE("4. every bad argument is refused in a sentence, before anything is written") {
  const tile_plan plan =
      make_tile_plan(full_mask(valid_call::query_tokens, valid_call::key_tokens), {4, 4});
  check_forward_errors("cpu::forward", [&](const forward_arguments<float>& arguments,
                                           const attention_options& options) {
    cpu::forward(arguments, plan, options);
  });
  check_forward_errors("cpu::forward", [&](const forward_arguments<float>& arguments,
                                           const attention_options& options) {
    cpu::prepare_forward(arguments, plan, options);
  });
}

TEST_CASE("4. head dims that are no multiple of 8 up to 256 are refused") {
  const tile_plan plan =
      make_tile_plan(full_mask(valid_call::query_tokens, valid_call::key_tokens), {4, 4});
  for (const index_t head_dim : {0, 4, 9, 12, 15, 264}) {
    valid_call valid;
    forward_arguments<float> keys = valid.arguments();
    keys.q.head_dim = keys.k.head_dim = head_dim;
    const std::vector<float> q(5 * 4 * 264), k(7 * 2 * 264);
    keys.q.data = q.data();
    keys.k.data = k.data();
    CHECK(sentence_of([&] { cpu::forward(keys, plan); }) ==
          "cpu::forward: q.head_dim is " + std::to_string(head_dim) +
              ", must be a multiple of 8 from 8 to 256");
    forward_arguments<float> values = valid.arguments();
    values.v.head_dim = values.o.head_dim = head_dim;
    values.o.head_stride = 300;
    values.o.token_stride = 1200;
    std::vector<float> o(5 * 1200);
    values.o.data = o.data();
    CHECK(sentence_of([&] { cpu::forward(values, plan); }) ==
          "cpu::forward: v.head_dim is " + std::to_string(head_dim) +
              ", must be a multiple of 8 from 8 to 256");
    CHECK(valid.outputs_untouched());
  }
}

TEST_CASE("4. plans of another size and plan sets without a plan for each head are refused") {
  const std::vector<tile_plan> plans = {make_tile_plan(full_mask(5, 7), {4, 4}),
                                        make_tile_plan(causal_mask(5, 7), {3, 8}),
                                        make_tile_plan(full_mask(7, 5), {4, 4})};
  const std::span<const tile_plan> all = plans;
  valid_call valid;
  const auto sentence = [&](const plan_set& set) {
    return sentence_of([&] { cpu::forward(valid.arguments(), set); });
  };
  CHECK(sentence(plans[2]) ==
        "cpu::forward: plan 0 is for 7 queries x 5 keys, the arguments have 5 x 7");
  const std::vector<index_t> heads = {0, 1, 1, 0};
  CHECK(sentence({all, heads}) ==
        "cpu::forward: plan 2 is for 7 queries x 5 keys, the arguments have 5 x 7");
  CHECK(sentence({all.first(2), {}}) ==
        "cpu::forward: the plan set holds 2 plans but head_to_plan is empty; it must name the plan "
        "of each of the 4 query heads");
  CHECK(sentence({all.first(0), heads}) == "cpu::forward: the plan set holds no plan");
  CHECK(sentence({all.first(2), std::span(heads).first(3)}) ==
        "cpu::forward: head_to_plan has 3 entries for 4 query heads");
  const std::vector<index_t> outside = {0, 1, 2, 0};
  CHECK(sentence({all.first(2), outside}) ==
        "cpu::forward: head_to_plan[2] is 2, must be in [0, 2)");
  CHECK(valid.outputs_untouched());
  CHECK(sentence({all.first(2), heads}) == "no error");
}

TEST_CASE("5. one const plan serves calls that run at the same time") {
  const attention_case c = rich_case(64);
  const prepared_case<float> expected(c);
  cpu::forward(expected.tensors.arguments(), expected.set(), expected.options);
  const prepared_case<float> first(c);
  const prepared_case<float> second(c);
  const auto run = [&](const prepared_case<float>& own) {
    cpu::forward(own.tensors.arguments(), expected.set(), own.options);
  };
  std::thread other(run, std::cref(first));
  run(second);
  other.join();
  CHECK(first.same_bits(expected));
  CHECK(second.same_bits(expected));
}

TEST_CASE("6. a workspace is used to its last byte and not beyond") {
  const prepared_case<float> expected(rich_case(64));
  cpu::forward(expected.tensors.arguments(), expected.set(), expected.options);
  for (const index_t workers : {1, 3}) {
    const prepared_case<float> call(rich_case(64));
    shuffling_executor executor(workers, 6);
    const index_t needed = cpu::workspace_size(call.job(), workers);
    const auto run = [&](std::span<std::byte> workspace) {
      return sentence_of([&] {
        cpu::forward(call.tensors.arguments(), call.set(), call.options, executor, workspace);
      });
    };
    constexpr index_t canary = 256;
    const workspace_buffer buffer(needed + canary);
    std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{0xff});  // NaN everywhere
    const auto exact = buffer.bytes().first(static_cast<std::size_t>(needed));
    CHECK(run(exact.first(exact.size() - 1)) == "cpu::forward: workspace has " +
                                                    std::to_string(needed - 1) + " bytes, needs " +
                                                    std::to_string(needed));
    CHECK(run({}) == "cpu::forward: workspace has 0 bytes, needs " + std::to_string(needed));
    CHECK(run(buffer.bytes().subspan(4)) ==
          "cpu::forward: workspace is 4 bytes past a multiple of 64");
    CHECK(call.tensors.o.all_untouched());
    CHECK(run(exact) == "no error");
    CHECK(call.same_bits(expected));
    const auto beyond = buffer.bytes().last(canary);
    CHECK(std::count(beyond.begin(), beyond.end(), std::byte{0xff}) == canary);
    CHECK(run(buffer.bytes()) == "no error");  // larger is fine, and so is a used one
    CHECK(call.same_bits(expected));
  }
}

TEST_CASE("6. a call that was given its workspace allocates nothing") {
  const prepared_case<bfloat16> call(rich_case(64));
  const forward_arguments<bfloat16> arguments = call.tensors.arguments();
  const workspace_buffer workspace(cpu::workspace_size(call.job(), 1));
  const index_t before = allocation_count();
  cpu::forward(arguments, call.set(), call.options, serial_executor{}, workspace.bytes());
  CHECK(allocation_count() == before);
  cpu::forward(arguments, call.set(), call.options);
  CHECK(allocation_count() == before + 1);  // the overload that makes a workspace: the count counts
}

TEST_CASE("empty axes are legal") {
  struct sizes {
    index_t queries, keys, query_heads, kv_heads;
  };
  for (const sizes& s : {sizes{0, 0, 2, 1}, sizes{0, 9, 2, 1}, sizes{9, 0, 2, 1}, sizes{9, 9, 0, 0},
                         sizes{9, 9, 0, 3}, sizes{0, 0, 0, 0}}) {
    CAPTURE(s.queries, s.keys, s.query_heads, s.kv_heads);
    attention_case c;
    c.masks = {full_mask(s.queries, s.keys), {16, 32}};
    c.query_heads = s.query_heads;
    c.kv_heads = s.kv_heads;
    const prepared_case<float> call(c);
    const auto job = call.job();
    const workspace_buffer workspace(cpu::workspace_size(job, 1));
    cpu::forward(call.tensors.arguments(), call.set(), {}, serial_executor{}, workspace.bytes());
    CHECK(call.tensors.margins_untouched());
    for (index_t i = 0; i < s.queries; ++i) {
      for (index_t h = 0; h < s.query_heads; ++h) {
        const float* const row = call.tensors.o.view().row(i, h);
        if (s.keys > 0) continue;
        CHECK(std::count(row, row + c.value_dim, 0.0F) == c.value_dim);
        CHECK(call.tensors.lse.as_lse().at(i, h) == -infinity);
      }
    }
  }
  // Nothing at all needs no memory.
  const tile_plan nothing = make_tile_plan(full_mask(0, 0), {16, 32});
  const heads_view<float> none = {nullptr, 0, 0, 8, 0, 0};
  CHECK(sentence_of([&] { cpu::forward({.q = none, .k = none, .v = none, .o = none}, nothing); }) ==
        "no error");
}

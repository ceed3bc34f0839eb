// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <barrier>
#include <blockattn/core/eigen_executor.hpp>
#include <thread>

#include "cpu/cpu_backend.hpp"
#include "support/allocation_count.hpp"
#include "support/backward_errors.hpp"
#include "support/backward_oracle.hpp"
#include "support/example_cases.hpp"
#include "support/plain_gradients.hpp"
#include "support/shuffling_executor.hpp"

using namespace blockattn;
using namespace blockattn_test;

// DESIGN.md, section 6, point by point.

namespace {

/// A case with its plans and tensors, ready to run in any way.
template <class T>
struct prepared_case {
  explicit prepared_case(const attention_case& c)
      : plans(c.masks.make_plans({.transposed = true})),
        masks(c.masks),
        options(c.options),
        tensors(c) {}

  plan_set set() const { return plan_set(plans, masks.head_to_mask); }
  auto job() { return cpu::prepare_backward(tensors.arguments(), set(), options); }
  template <class... More>
  void run(More&&... more) {
    cpu::backward(tensors.arguments(), set(), options, more...);
  }

  std::vector<tile_plan> plans;
  head_masks masks;
  attention_options options;
  backward_tensors<T, T, T, T> tensors;
};

}  // namespace

TEST_CASE(
    "backward, 1. rows that see nothing and keys that nobody sees get 0, whatever they hold") {
  const auto mask = attention_mask::from_disjoint_slices(
      40, 50, {{.queries = {3, 4}, .keys = {5, 9}}, {.queries = {20, 40}, .keys = {33, 44}}});
  random_source random(1);
  plain_inputs<float> in = random_inputs<float>(random, 40, 50);
  plain_loss<float> loss = random_loss(random, in, true);
  const plain_gradients<float> expected = run_gradients(cpu_backend{}, in, loss, mask);
  const plain_sizes& s = in.sizes;
  const auto zero_row = [](const std::vector<float>& rows, index_t row, index_t width) {
    return std::count(rows.begin() + row * width, rows.begin() + (row + 1) * width, 0.0F) == width;
  };
  for (const float poison : {std::nanf(""), HUGE_VALF, 3e38F}) {
    for (index_t i = 0; i < 40; ++i) {
      if (i == 3 || i >= 20) continue;
      std::fill_n(in.q.begin() + i * s.query_heads * s.head_dim, s.query_heads * s.head_dim,
                  poison);
      std::fill_n(loss.d_o.begin() + i * s.query_heads * s.value_dim, s.query_heads * s.value_dim,
                  poison);
    }
    for (index_t j = 0; j < 50; ++j) {
      if ((5 <= j && j < 9) || (33 <= j && j < 44)) continue;
      std::fill_n(in.k.begin() + j * s.kv_heads * s.head_dim, s.kv_heads * s.head_dim, poison);
      std::fill_n(in.v.begin() + j * s.kv_heads * s.value_dim, s.kv_heads * s.value_dim, poison);
    }
    const plain_gradients<float> g = run_gradients(cpu_backend{}, in, loss, mask);
    CAPTURE(poison);
    CHECK(g.d_q == expected.d_q);
    CHECK(g.d_k == expected.d_k);
    CHECK(g.d_v == expected.d_v);
    for (index_t i = 0; i < 40; ++i) {
      CHECK(zero_row(g.d_q, i, s.query_heads * s.head_dim) == !(i == 3 || i >= 20));
    }
    for (index_t j = 0; j < 50; ++j) {
      const bool seen = (5 <= j && j < 9) || (33 <= j && j < 44);
      CHECK(zero_row(g.d_k, j, s.kv_heads * s.head_dim) == !seen);
      CHECK(zero_row(g.d_v, j, s.kv_heads * s.value_dim) == !seen);
    }
  }
}

TEST_CASE("backward, 2. a row that sees nothing gives the gradient of its lse to the sink logit") {
  random_source random(2);
  const plain_inputs<double> in = random_inputs<double>(random, 3, 4);
  const plain_loss<double> loss = random_loss(random, in, true);
  plain_options<double> options;
  options.sink_logits = {0.5, -std::numeric_limits<double>::infinity(), 100, -3};
  const plain_gradients<double> g = run_gradients(
      cpu_backend{}, in, loss, attention_mask::from_disjoint_slices(3, 4, {}), options);
  for (std::size_t h = 0; h < 4; ++h) {
    const double all = loss.d_lse[h] + loss.d_lse[4 + h] + loss.d_lse[8 + h];
    CHECK(g.d_sink_logits[h] == Approx(h == 1 ? 0 : all).margin(1e-14));
  }
}

TEMPLATE_TEST_CASE("backward, 3. every executor gives the same bits", "", float, bfloat16) {
  attention_case one_kv_head = rich_case(48);
  one_kv_head.kv_heads = 1;
  for (const attention_case& c : {rich_case(48), one_kv_head}) {
    prepared_case<TestType> serial(c);
    serial.run();
    CHECK(backward_oracle(serial.tensors, c).first_difference(serial.tensors) == "");
    for (const index_t workers : {1, 2, 7}) {
      prepared_case<TestType> shuffled(c);
      shuffling_executor executor(workers, test_seed(31) + static_cast<std::uint64_t>(workers));
      shuffled.run(executor);
      CHECK(shuffled.tensors.same_bits(serial.tensors));

      prepared_case<TestType> pooled(c);
      Eigen::ThreadPool pool(static_cast<int>(workers));
      eigen_executor on_pool(pool);
      pooled.run(on_pool);
      CHECK(pooled.tensors.same_bits(serial.tensors));
    }
  }
}

TEST_CASE("backward, 3. threads that an engine brings give the same bits") {
  prepared_case<float> serial(rich_case(48));
  serial.run();
  prepared_case<float> threaded(rich_case(48));
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
  CHECK(threaded.tensors.same_bits(serial.tensors));
}

TEST_CASE("backward, 4. every bad argument is refused in a sentence, before anything is written") {
  const tile_plan plan =
      make_tile_plan(full_mask(valid_backward_call::query_tokens, valid_backward_call::key_tokens),
                     {4, 4}, {.transposed = true});
  using arguments_type = backward_arguments<float>;
  check_backward_errors("cpu::backward",
                        [&](const arguments_type& arguments, const attention_options& options) {
                          cpu::backward(arguments, plan, options);
                        });
  check_backward_errors("cpu::backward_accumulate",
                        [&](const arguments_type& arguments, const attention_options& options) {
                          cpu::backward_accumulate(arguments, plan, options);
                        });
}

TEST_CASE("backward, 4. plans that do not serve are refused") {
  const std::vector<tile_plan> plans = {
      make_tile_plan(full_mask(5, 7), {4, 4}), make_tile_plan(full_mask(7, 5), {4, 4}),
      make_tile_plan(full_mask(5, 7), {4, 4}, {.transposed = true}),
      make_tile_plan(causal_mask(5, 7), {4, 8}, {.transposed = true}),
      make_tile_plan(causal_mask(5, 7), {3, 4}, {.transposed = true})};
  const std::span<const tile_plan> all = plans;
  valid_backward_call valid;
  const auto sentence = [&](const plan_set& set) {
    return sentence_of([&] { cpu::backward(valid.arguments(), set); });
  };
  CHECK(sentence(plans[0]) ==
        "cpu::backward: plan 0 has no transposed tile lists; build it with "
        "{.transposed = true}");
  CHECK(sentence(plans[1]) ==
        "cpu::backward: plan 0 is for 7 queries x 5 keys, the arguments have 5 x 7");
  const std::vector<index_t> mixed = {0, 0, 0, 1};
  CHECK(sentence({all.subspan(2, 2), mixed}) ==
        "cpu::backward: heads 2 and 3 share kv head 1 but the key tiles of their plans are 4 and "
        "8");
  CHECK(valid.outputs_untouched());
  const std::vector<index_t> by_kv_head = {0, 2, 1, 1};  // a size for each kv head is fine
  CHECK(sentence({all.subspan(2, 3), by_kv_head}) == "no error");
}

TEST_CASE("backward, 4. head dims that are no multiple of 8 up to 256 are refused") {
  const tile_plan plan = make_tile_plan(full_mask(5, 7), {4, 4}, {.transposed = true});
  for (const index_t head_dim : {4, 12, 264}) {
    valid_backward_call valid;
    backward_arguments<float> keys = valid.arguments();
    keys.q.head_dim = keys.k.head_dim = keys.d_q.head_dim = keys.d_k.head_dim = head_dim;
    keys.d_q.head_stride = keys.d_k.head_stride = 300;
    keys.d_q.token_stride = keys.d_k.token_stride = 1200;
    std::vector<float> d_q(5 * 1200), d_k(7 * 1200), q(5 * 4 * 264), k(7 * 2 * 264);
    keys.d_q.data = d_q.data();
    keys.d_k.data = d_k.data();
    keys.q.data = q.data();
    keys.k.data = k.data();
    CHECK(sentence_of([&] { cpu::backward(keys, plan); }) ==
          "cpu::backward: q.head_dim is " + std::to_string(head_dim) +
              ", must be a multiple of 8 from 8 to 256");
    CHECK(valid.outputs_untouched());
  }
}

TEST_CASE("backward, 6. a workspace is used to its last byte and not beyond") {
  prepared_case<float> expected(rich_case(48));
  expected.run();
  for (const index_t workers : {1, 3}) {
    prepared_case<float> call(rich_case(48));
    shuffling_executor executor(workers, 6);
    const index_t needed = cpu::workspace_size(call.job(), workers);
    const auto run = [&](std::span<std::byte> workspace) {
      return sentence_of([&] { call.run(executor, workspace); });
    };
    constexpr index_t canary = 256;
    const workspace_buffer buffer(needed + canary);
    std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{0xff});  // NaN everywhere
    const auto exact = buffer.bytes().first(static_cast<std::size_t>(needed));
    CHECK(run(exact.first(exact.size() - 1)) == "cpu::backward: workspace has " +
                                                    std::to_string(needed - 1) + " bytes, needs " +
                                                    std::to_string(needed));
    CHECK(run(buffer.bytes().subspan(4)) ==
          "cpu::backward: workspace is 4 bytes past a multiple of 64");
    CHECK(call.tensors.d_q.all_untouched());
    CHECK(run(exact) == "no error");
    CHECK(call.tensors.same_bits(expected.tensors));
    const auto beyond = buffer.bytes().last(canary);
    CHECK(std::count(beyond.begin(), beyond.end(), std::byte{0xff}) == canary);
    CHECK(run(buffer.bytes()) == "no error");  // larger is fine, and so is a used one
    CHECK(call.tensors.same_bits(expected.tensors));
  }
}

TEST_CASE("backward, 6. the workspace grows with the tokens, not with their square") {
  const auto bytes = [](index_t tokens) {
    const auto rows = token_major<const float>(nullptr, tokens, 1, 8);
    const auto gradient = token_major<float>(nullptr, tokens, 1, 8);
    const tile_plan plan = make_tile_plan(causal_mask(tokens), {64, 256}, {.transposed = true});
    return cpu::backward_workspace_size<float>({.q = rows,
                                                .k = rows,
                                                .v = rows,
                                                .o = rows,
                                                .lse = {},
                                                .d_o = rows,
                                                .d_q = gradient,
                                                .d_k = gradient,
                                                .d_v = gradient},
                                               plan, 1);
  };
  const index_t first = bytes(16384);
  const index_t second = bytes(32768);
  const index_t third = bytes(65536);
  CHECK(third - second == 2 * (second - first));
  CHECK(third < index_t{65536} * 2048);
}

TEST_CASE("backward, 6. a call that was given its workspace allocates nothing") {
  prepared_case<bfloat16> call(rich_case(48));
  const auto arguments = call.tensors.arguments();
  const workspace_buffer workspace(cpu::workspace_size(call.job(), 1));
  const index_t before = allocation_count();
  cpu::backward(arguments, call.set(), call.options, serial_executor{}, workspace.bytes());
  CHECK(allocation_count() == before);
  cpu::backward(arguments, call.set(), call.options);
  CHECK(allocation_count() == before + 1);  // the overload that makes a workspace: the count counts
}

TEST_CASE("backward, 7. backward assigns, backward_accumulate adds") {
  for (const index_t kv_heads : {1, 2}) {
    attention_case c = rich_case(48);
    c.kv_heads = kv_heads;
    prepared_case<float> assigned(c);
    assigned.run();
    prepared_case<float> added(c);
    backward_arguments<float> to = added.tensors.arguments();
    const backward_arguments<float> from = assigned.tensors.arguments();
    const auto every_token = [](index_t /*token*/) { return true; };
    random_source random(7);
    added.tensors.d_q.fill_normal(random, 1, every_token);
    added.tensors.d_k.fill_normal(random, 1, every_token);
    added.tensors.d_v.fill_normal(random, 1, every_token);
    for (float& value : to.d_sink_logits) value = 2;
    const std::vector<double> d_q = to_fp64(to.d_q), d_k = to_fp64(to.d_k), d_v = to_fp64(to.d_v);
    cpu::backward_accumulate(to, added.set(), added.options);
    const auto is_sum = [](const heads_view<float>& sum, const std::vector<double>& before,
                           const heads_view<float>& gradient) {
      const std::vector<double> sums = to_fp64(sum), parts = to_fp64(gradient);
      for (std::size_t i = 0; i < sums.size(); ++i) {
        // The factor and the sum may be rounded together.
        const double expected = before[i] + parts[i];
        if (!(std::abs(sums[i] - expected) <= 0x1p-23 * (std::abs(expected) + std::abs(parts[i]))))
          return false;
      }
      return true;
    };
    CHECK(is_sum(to.d_q, d_q, from.d_q));
    CHECK(is_sum(to.d_k, d_k, from.d_k));
    CHECK(is_sum(to.d_v, d_v, from.d_v));
    for (std::size_t h = 0; h < to.d_sink_logits.size(); ++h) {
      CHECK(to.d_sink_logits[h] == Approx(2 + from.d_sink_logits[h]).epsilon(1e-6));
    }
    CHECK(added.tensors.margins_untouched());
  }
}

TEST_CASE("backward of empty axes") {
  struct sizes {
    index_t queries, keys, query_heads, kv_heads;
  };
  for (const sizes& s : {sizes{0, 0, 2, 1}, sizes{0, 9, 2, 1}, sizes{9, 0, 2, 1}, sizes{9, 9, 0, 0},
                         sizes{9, 9, 0, 3}, sizes{0, 0, 0, 0}}) {
    CAPTURE(s.queries, s.keys, s.query_heads, s.kv_heads);
    const tile_plan plan =
        make_tile_plan(full_mask(s.queries, s.keys), {16, 32}, {.transposed = true});
    const tensor_layout layout;
    hostile_tensor<float> q(s.queries, s.query_heads, 8, layout), k(s.keys, s.kv_heads, 8, layout),
        v(s.keys, s.kv_heads, 8, layout), o(s.queries, s.query_heads, 8, layout),
        lse(s.queries, s.query_heads, 1, layout), d_q(s.queries, s.query_heads, 8, layout),
        d_k(s.keys, s.kv_heads, 8, layout), d_v(s.keys, s.kv_heads, 8, layout),
        d_o(s.queries, s.query_heads, 8, layout);
    const std::vector<float> sinks(static_cast<std::size_t>(s.query_heads), 1.0F);
    std::vector<float> d_sinks(sinks.size(), -1.0F);
    random_source random(1);
    for (auto* tensor : {&q, &k, &v, &o, &lse, &d_o}) {
      tensor->fill_normal(random, 1, [](index_t /*token*/) { return true; });
    }
    cpu::backward({.q = q.view(),
                   .k = k.view(),
                   .v = v.view(),
                   .o = o.view(),
                   .lse = lse.as_lse(),
                   .d_o = d_o.view(),
                   .d_q = d_q.view(),
                   .d_k = d_k.view(),
                   .d_v = d_v.view(),
                   .sink_logits = sinks,
                   .d_sink_logits = d_sinks},
                  plan);
    for (const auto* tensor : {&d_q, &d_k, &d_v}) CHECK(tensor->margins_untouched());
    if (s.keys == 0 || s.query_heads == 0) {
      for (const auto* tensor : {&d_q, &d_k, &d_v}) {
        for (const double value : to_fp64(tensor->view())) CHECK(value == 0);
      }
    }
    if (s.queries == 0) {
      for (const float value : d_sinks) CHECK(value == 0);
      for (const auto* tensor : {&d_k, &d_v}) {
        for (const double value : to_fp64(tensor->view())) CHECK(value == 0);
      }
    }
  }
}

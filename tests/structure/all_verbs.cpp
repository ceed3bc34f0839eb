// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Every verb in every storage type, called as a stranger calls it: compiled with the strictest
// warnings that strangers use and without optimisation, for each instruction set. What the fast
// verbs return agrees with the references.

#include <algorithm>
#include <array>
#include <blockattn/blockattn.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

namespace ba = blockattn;

namespace {

constexpr ba::index_t tokens = 7, heads = 2, head_dim = 16, value_dim = 8, vocabulary = 33;
int failures = 0;

void expect_near(const char* verb, double value, double expected, double tolerance) {
  if (std::abs(value - expected) <= tolerance) return;  // false for NaN
  std::printf("%s: %g, expected %g\n", verb, value, expected);
  ++failures;
}

template <class T>
std::vector<T> values_of(ba::index_t count, double phase) {
  std::vector<T> values(static_cast<std::size_t>(count));
  double i = 0;
  for (T& value : values) ba::store_scalar(value, std::sin(phase + 0.7 * i++));
  return values;
}

template <class T>
void expect_equal(const char* verb, const std::vector<T>& values, const std::vector<T>& expected) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    expect_near(verb, static_cast<double>(ba::load_scalar(values[i])),
                static_cast<double>(ba::load_scalar(expected[i])), 0.05);
  }
}

/// A (tokens, heads, head_dim) tensor of T.
template <class T>
struct tensor {
  ba::index_t rows, dim;
  std::vector<T> values = values_of<T>(rows * heads * dim, static_cast<double>(dim));
  ba::heads_view<T> view() { return ba::token_major(values.data(), rows, heads, dim); }
};

template <class T>
void call_attention() {
  using C = ba::accumulator_t<T>;
  const auto layout =
      ba::with_final_block(ba::block_layout::from_lengths(std::array<ba::index_t, 3>{2, 3, 2}));
  const ba::attention_mask mask = ba::block_attention_mask(layout);
  const ba::tile_plan plan =
      ba::make_tile_plan(mask, ba::cpu::tile_shape_for<T>(head_dim), {.transposed = true});
  tensor<T> q{tokens, head_dim}, k{tokens, head_dim}, v{tokens, value_dim};
  tensor<T> o{tokens, value_dim}, d_o{tokens, value_dim};
  tensor<T> d_q{tokens, head_dim}, d_k{tokens, head_dim}, d_v{tokens, value_dim};
  std::vector<C> lse(tokens * heads), d_lse(tokens * heads), d_sinks(heads);
  const std::vector<C> sinks(heads, C(0.5));
  const auto lse_of = [](std::vector<C>& values) {
    return ba::token_major_lse(values.data(), tokens, heads);
  };
  const ba::attention_options options = {.scale = 0.25, .softcap = 20};

  const ba::forward_arguments<T> forward = {.q = q.view(),
                                            .k = k.view(),
                                            .v = v.view(),
                                            .o = o.view(),
                                            .lse = lse_of(lse),
                                            .sink_logits = sinks};
  ba::reference::forward(forward, mask, options);
  const std::vector<T> expected_o = o.values;
  ba::cpu::forward(forward, plan, options);
  expect_equal("forward", o.values, expected_o);

  const ba::backward_arguments<T> backward = {.q = q.view(),
                                              .k = k.view(),
                                              .v = v.view(),
                                              .o = o.view(),
                                              .lse = lse_of(lse),
                                              .d_o = d_o.view(),
                                              .d_q = d_q.view(),
                                              .d_k = d_k.view(),
                                              .d_v = d_v.view(),
                                              .d_lse = lse_of(d_lse),
                                              .sink_logits = sinks,
                                              .d_sink_logits = d_sinks};
  ba::reference::backward(backward, mask, options);
  const std::vector<T> expected_d_q = d_q.values, expected_d_k = d_k.values;
  ba::cpu::backward(backward, plan, options);
  expect_equal("backward d_q", d_q.values, expected_d_q);
  expect_equal("backward d_k", d_k.values, expected_d_k);
  ba::cpu::backward_accumulate(backward, plan, options);

  const ba::rope rope({.head_dim = head_dim});
  const ba::key_segment<T> segment = {.k = k.view(), .v = v.view(), .query_shift = -3};
  const ba::attend_sequence<T> sequence = {
      .queries = {0, tokens}, .segments = {&segment, 1}, .tail = {.k = k.view(), .v = v.view()}};
  ba::cpu::attend_blocks<T>(
      {.q = q.view(), .o = o.view(), .lse = lse_of(lse), .sequences = {&sequence, 1}},
      {.softcap = 20, .rope = &rope});

  // A state merged with itself is itself.
  const ba::partial_state<T> state = {.o = d_o.view(), .lse = lse_of(lse)};
  const std::array states = {state, state};
  ba::cpu::merge<T>({.states = states, .o = o.view(), .lse = lse_of(d_lse)});
  expect_equal("merge", o.values, d_o.values);
  const std::array<ba::partial_state_gradient<T>, 2> gradients = {{{.d_o = d_v.view()}, {}}};
  ba::cpu::merge_backward<T>({.states = states,
                              .d_o = o.view(),
                              .gradients = gradients,
                              .sink_logits = sinks,
                              .d_sink_logits = d_sinks});

  const std::vector<double> positions = values_of<double>(tokens, 1);
  const std::vector<T> before = q.values;
  ba::rotate(rope, q.view(), positions);
  ba::rotate_backward(rope, q.view(), positions);
  expect_equal("rotate and back", q.values, before);
  ba::reposition(rope, q.view(), 2.5);
  ba::reposition(rope, q.view(), std::vector<double>(tokens, -2.5));
  expect_equal("reposition and back", q.values, before);
}

template <class T>
void call_layout() {
  const auto layout = ba::with_sink_tokens(
      ba::with_final_block(ba::block_layout::from_lengths(std::array<ba::index_t, 2>{5, 2})),
      {.tokens_per_block = 1});
  const std::vector<T> rows = values_of<T>(7 * 3, 1), sinks = values_of<T>(3, 2);
  std::vector<T> all(static_cast<std::size_t>(layout.tokens() * 3)), back(rows.size());
  std::vector<T> d_sinks(sinks.size());
  ba::scatter_rows(layout, rows, sinks, all, 3);
  ba::gather_rows(layout, all, back, 3);
  expect_equal("scatter and gather", back, rows);
  ba::scatter_rows_backward(layout, all, back, d_sinks, 3);
  ba::scatter_rows_backward_accumulate(layout, all, back, d_sinks, 3);
  ba::gather_rows_backward(layout, rows, all, 3);
  ba::gather_rows_backward_accumulate(layout, rows, all, 3);
}

template <class T>
void call_distillation() {
  using C = ba::accumulator_t<T>;
  const ba::index_t values = tokens * vocabulary;
  const std::vector<T> teacher = values_of<T>(values, 1), student = values_of<T>(values, 2);
  std::vector<T> d_student(teacher.size());
  std::vector<C> losses(tokens), weights(tokens), scores(tokens), teacher_scores(tokens);
  const std::vector<std::int32_t> labels(tokens, 3);
  ba::label_log_probability_arguments<T> label;
  label.labels = labels;
  label.logits = ba::dense_logits(teacher.data(), tokens, vocabulary);
  label.log_probabilities = teacher_scores;
  ba::label_log_probabilities(label);
  label.logits = ba::dense_logits(student.data(), tokens, vocabulary);
  label.log_probabilities = scores;
  ba::label_log_probabilities(label);
  ba::label_gaps<C>(teacher_scores, scores, scores);
  ba::token_weights<C>({.scores = scores, .weights = weights});
  ba::token_weights<C>({.scores = scores, .weights = weights},
                       {.weighting = ba::token_weighting::top_fraction});

  std::vector<std::int32_t> ids(2 * tokens);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = i % 2 == 0 ? 5 : 1;
  std::vector<C> log_probabilities(ids.size(), C(-1));
  ba::sort_top_k<C>(2, ids, log_probabilities);
  for (const auto kind :
       {ba::divergence::forward_kl, ba::divergence::reverse_kl, ba::divergence::jensen_shannon}) {
    ba::distillation_arguments<T> arguments;
    arguments.student = ba::dense_logits(student.data(), tokens, vocabulary);
    arguments.d_student = ba::dense_logits(d_student.data(), tokens, vocabulary);
    arguments.weights = weights, arguments.labels = labels, arguments.token_losses = losses;
    const ba::distillation_options options = {.divergence = kind, .label_weight = 0.25};
    for (const bool has_logits : {false, true}) {
      if (has_logits) {
        arguments.top_k = {};
        arguments.teacher = ba::dense_logits(teacher.data(), tokens, vocabulary);
      } else {
        arguments.top_k = {.ids = ids, .log_probabilities = log_probabilities};
      }
      expect_near("distillation_loss", ba::distillation_loss(arguments, options),
                  ba::reference::distillation_loss(arguments, options), 1e-4);
    }
  }
}

template <class T>
void call_store() {
  constexpr ba::storage_format format = ba::format_of<T>;
  const std::array<std::int32_t, 2> ids = {3, 4};
  const ba::kv::block_key key(
      {.tokens = ids, .model_fingerprint = "model", .key_format = format, .value_format = format});
  ba::kv::block_store<> store({.byte_budget = 1 << 16});
  auto draft = store.begin_insert(key, {.layers = 1,
                                        .kv_heads = heads,
                                        .tokens = 2,
                                        .head_dim = head_dim,
                                        .value_dim = value_dim,
                                        .key_format = format,
                                        .value_format = format});
  ba::store_scalar(draft.template k<T>(0).row(0, 0)[0], 1.0);
  ba::store_scalar(draft.template v<T>(0).row(0, 0)[0], 2.0);
  const ba::kv::cached_block block = store.commit(std::move(draft));
  const ba::key_segment<T> segment = store.find(key).template segment<T>(0, 3.0);
  expect_near("block_store", static_cast<double>(ba::load_scalar(segment.v.row(0, 0)[0])), 2, 0);
}

/// Masks and plans do not depend on a type.
void call_masks() {
  using std::array;
  const auto layout =
      ba::with_final_block(ba::block_layout::from_lengths(array<ba::index_t, 3>{2, 3, 2}));
  const array<ba::index_t, 3> some = {0, 2, 5};
  const array<ba::index_t, 2> lengths = {4, 3};
  const std::vector<ba::block_visibility> visible(9, ba::block_visibility::full);
  const array<ba::attention_mask, 10> masks = {
      ba::full_mask(7, 7),
      ba::causal_mask(7),
      ba::sliding_window_mask(7, 3),
      ba::sink_window_mask(7, 1, 3),
      ba::shared_prefix_mask(layout),
      ba::packed_documents_mask(lengths, ba::document_attention::causal),
      ba::block_visibility_mask(layout, visible),
      ba::custom_mask(7, 7, [](ba::index_t query, ba::index_t key) { return key <= query; }),
      ba::block_dropout_mask(layout, {.keep_probability = 0.5}),
      ba::mask_from_slices(7, 7, array{ba::slice{.queries = {0, 7}, .keys = {0, 3}}}),
  };
  for (const ba::attention_mask& mask : masks) {
    const ba::attention_mask picked = ba::gather_mask(mask, some, some);
    const auto dense = ba::to_dense(picked);
    const auto seen = std::count(dense.begin(), dense.end(), std::uint8_t{1});
    const ba::tile_plan plan = ba::make_tile_plan(picked, {.queries = 2, .keys = 2});
    expect_near("visible_pairs", static_cast<double>(plan.statistics().visible_pairs),
                static_cast<double>(seen), 0);
  }
}

template <class T>
void call_all() {
  call_attention<T>();
  call_layout<T>();
  call_distillation<T>();
  call_store<T>();
}

}  // namespace

int main() {  // NOLINT(bugprone-exception-escape): what escapes fails the test
  call_masks();
  call_all<float>();
  call_all<double>();
  call_all<ba::bfloat16>();
  call_all<ba::float16>();
  return failures == 0 ? 0 : 1;
}

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "training.hpp"

#include <blockattn/distill/distillation_loss.hpp>
#include <blockattn/distill/token_weights.hpp>
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/block_visibility_mask.hpp>
#include <blockattn/mask/packed_documents_mask.hpp>

namespace distillation {
namespace {

/// What a random source is for; the teacher's batches are never the students'.
enum purpose : std::uint64_t { teacher_batch = 1, student_batch, dropout_draw, country_draw };

ba::logits_view<const float> logits_of(const matrix<float>& m) {
  return ba::dense_logits(m.data(), m.rows(), m.cols());
}
ba::logits_view<float> logits_of(matrix<float>& m) {
  return ba::dense_logits(m.data(), m.rows(), m.cols());
}

/// One block of two sentences at first, then up to more and more blocks of full size.
document_size growing_size(const document_size& full, double grown) {
  const auto blocks = static_cast<ba::index_t>(grown * static_cast<double>(full.most_blocks));
  if (blocks == 0) return {.fewest_blocks = 1, .most_blocks = 1, .sentences_per_block = 2};
  return {.fewest_blocks = 1,
          .most_blocks = std::min(full.most_blocks, blocks + 1),
          .sentences_per_block = full.sentences_per_block};
}

/// Full attention, but no final block sees the block that names the country.
token_axis<float> hidden_country_axis(const batch& samples, const model_shape& shape) {
  const ba::block_layout& layout = samples.layout;
  const ba::index_t blocks = layout.blocks();
  std::vector<ba::block_visibility> visibility(static_cast<std::size_t>(blocks * blocks),
                                               ba::block_visibility::hidden);
  for (ba::index_t s = 0; s < layout.sequences(); ++s) {
    const ba::index_range own = layout.sequence_blocks(s);
    for (ba::index_t query = own.begin; query < own.end; ++query) {
      for (ba::index_t key = own.begin; key <= query; ++key) {
        const bool hidden = query == own.end - 1 && key == own.begin + country_block && key < query;
        if (!hidden) {
          visibility[static_cast<std::size_t>(query * blocks + key)] = ba::block_visibility::causal;
        }
      }
    }
  }
  return {layout, ba::block_visibility_mask(layout, visibility), shape};
}

}  // namespace

std::vector<recipe> all_recipes() {
  constexpr auto distillation = objective::block_distillation;
  return {
      {.name = "teacher, full attention", .objective = objective::language_modelling},
      {.name = "block fine-tuning", .objective = objective::block_fine_tuning},
      {.name = "block distillation",
       .objective = distillation,
       .sinks = true,
       .dropout = true,
       .weighting = true},
      {.name = "  without sink tokens",
       .objective = distillation,
       .sinks = false,
       .dropout = true,
       .weighting = true},
      {.name = "  without block dropout",
       .objective = distillation,
       .sinks = true,
       .dropout = false,
       .weighting = true},
      {.name = "  without token weighting",
       .objective = distillation,
       .sinks = true,
       .dropout = true,
       .weighting = false},
  };
}

token_axis<float> full_attention_axis(const batch& samples, const model_shape& shape) {
  return {samples.layout, ba::packed_documents_mask(samples.layout, ba::document_attention::causal),
          shape};
}

token_axis<float> block_attention_axis(const batch& samples, const model_shape& shape, bool sinks) {
  const ba::block_layout layout =
      ba::with_sink_tokens(samples.layout, {.tokens_per_block = sinks ? shape.sinks : 0});
  return {layout, ba::block_attention_mask(layout), shape};
}

double trainer::step(const recipe& recipe,
                     std::uint64_t seed,
                     std::span<const float> teacher,
                     trained_model& model) {
  gradient_.resize(model.weights.size());
  double loss = 0;
  switch (recipe.objective) {
    case objective::language_modelling:
      loss = language_modelling(seed, model);
      break;
    case objective::block_fine_tuning:
      loss = block_fine_tuning(seed, model);
      break;
    case objective::block_distillation:
      loss = block_distillation(recipe, seed, teacher, model);
      break;
  }
  const bool is_teacher = recipe.objective == objective::language_modelling;
  model.optimizer.update(model.weights, gradient_,
                         is_teacher ? options_.teacher_optimizer : options_.student_optimizer,
                         model.step, options_.steps(recipe));
  ++model.step;
  return loss;
}

double trainer::cross_entropy(const batch& samples,
                              const token_axis<float>& axis,
                              const std::vector<float>& token_weights,
                              const trained_model& model,
                              parameter_vector<float>& gradient) {
  const matrix<float>& logits = model_.forward(model.weights, axis, samples.ids);
  d_logits_.resize(logits.rows(), logits.cols());
  // With label_weight 1 the distillation loss is plain cross-entropy and needs no teacher.
  const double loss = ba::distillation_loss<float>({.student = logits_of(logits),
                                                    .weights = token_weights,
                                                    .labels = samples.next,
                                                    .d_student = logits_of(d_logits_)},
                                                   {.label_weight = 1}, workers_);
  model_.backward(model.weights, axis, samples.ids, d_logits_, gradient);
  return loss;
}

double trainer::language_modelling(std::uint64_t seed, const trained_model& model) {
  const double grown =
      static_cast<double>(model.step) /
      std::max(1.0, options_.growing * static_cast<double>(options_.teacher_steps));
  const batch samples =
      draw_batch(growing_size(options_.documents, grown), options_.tokens_per_step,
                 random_source::seed_of(purpose::teacher_batch, seed, model.step));
  std::vector<float> weights;
  for (const target_kind kind : samples.kinds) {
    weights.push_back(kind == target_kind::text   ? static_cast<float>(options_.text_weight)
                      : kind == target_kind::none ? 0.0F
                                                  : 1.0F);
  }
  random_source random(random_source::seed_of(purpose::country_draw, seed, model.step));
  const token_axis<float> axis = random.chance(options_.hidden_country)
                                     ? hidden_country_axis(samples, options_.shape)
                                     : full_attention_axis(samples, options_.shape);
  return cross_entropy(samples, axis, weights, model, gradient_);
}

double trainer::block_fine_tuning(std::uint64_t seed, const trained_model& model) {
  const batch samples =
      draw_batch(options_.documents, options_.tokens_per_step,
                 random_source::seed_of(purpose::student_batch, seed, model.step));
  std::vector<float> answers;
  for (const target_kind kind : samples.kinds) answers.push_back(is_answer(kind) ? 1.0F : 0.0F);
  second_gradient_.resize(gradient_.size());
  const double full = cross_entropy(samples, full_attention_axis(samples, options_.shape), answers,
                                    model, gradient_);
  const double block = cross_entropy(samples, block_attention_axis(samples, options_.shape, false),
                                     answers, model, second_gradient_);
  for (std::size_t i = 0; i < gradient_.size(); ++i) {
    gradient_[i] = 0.5F * (gradient_[i] + second_gradient_[i]);
  }
  return 0.5 * (full + block);
}

double trainer::block_distillation(const recipe& recipe,
                                   std::uint64_t seed,
                                   std::span<const float> teacher,
                                   const trained_model& model) {
  const batch samples =
      draw_batch(options_.documents, options_.tokens_per_step,
                 random_source::seed_of(purpose::student_batch, seed, model.step));
  const std::size_t tokens = samples.ids.size();

  // 1. What the frozen teacher says of every token, with full attention.
  const matrix<float>& taught =
      teacher_.forward(teacher, full_attention_axis(samples, options_.shape), samples.ids);

  // 2. What the student says. Without dropout the drawn mask is block attention: every sequence
  // keeps its final block. With it some sequences end in a random block, so that context blocks,
  // too, learn to read others that were encoded alone.
  const ba::block_layout layout = ba::with_sink_tokens(
      samples.layout, {.tokens_per_block = recipe.sinks ? options_.shape.sinks : 0});
  const ba::block_dropout_draw draw = ba::draw_block_dropout(
      layout, {.rule = ba::block_dropout_rule::random_final,
               .keep_probability = recipe.dropout ? options_.keep_probability : 1,
               .seed = random_source::seed_of(purpose::dropout_draw, seed, model.step)});
  const token_axis<float> axis(layout, draw.mask, options_.shape);
  const matrix<float>& said = model_.forward(model.weights, axis, samples.ids);

  // 3. The rows that read other blocks carry the loss.
  std::vector<std::uint8_t> learned(tokens);
  ba::gather_rows(layout, std::span<const std::uint8_t>(draw.loss_tokens), learned);
  std::vector<std::uint8_t> ignored(tokens);
  for (std::size_t i = 0; i < tokens; ++i) {
    ignored[i] = learned[i] == 0 || samples.kinds[i] == target_kind::none;
  }

  // 4. Where the student is far from the teacher, a token weighs more.
  std::vector<float> weights(tokens, 1.0F);
  if (recipe.weighting) {
    ba::distillation_loss<float>({.teacher = logits_of(taught),
                                  .student = logits_of(said),
                                  .ignored = ignored,
                                  .token_losses = weights},
                                 {}, workers_);
    ba::token_weights<float>({.scores = weights, .ignored = ignored, .weights = weights},
                             {.floor = 0.1, .cap = 10});
  }

  // 5. The loss, and the way back.
  d_logits_.resize(said.rows(), said.cols());
  const double loss = ba::distillation_loss<float>({.teacher = logits_of(taught),
                                                    .student = logits_of(said),
                                                    .weights = weights,
                                                    .ignored = ignored,
                                                    .d_student = logits_of(d_logits_)},
                                                   {}, workers_);
  model_.backward(model.weights, axis, samples.ids, d_logits_, gradient_);
  return loss;
}

}  // namespace distillation

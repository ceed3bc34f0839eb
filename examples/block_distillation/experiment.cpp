// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "experiment.hpp"

#include <bit>

#include "progress.hpp"

namespace distillation {
namespace {

constexpr std::uint64_t initial_weights = 100;

attention_mode mode_of(const recipe& r) {
  if (r.objective == objective::language_modelling) return attention_mode::full;
  return r.sinks ? attention_mode::block_with_sinks : attention_mode::block;
}

}  // namespace

experiment::experiment(const experiment_options& options, const ba::eigen_executor& workers)
    : options_(options),
      workers_(workers),
      trainer_(options.training, workers),
      held_out_(options.training, options.held_out_batches) {}

std::size_t experiment::current_index() const {
  if (seeds.empty()) return 0;
  return seeds.back().runs.size() % recipes_.size();
}

void experiment::advance() {
  if (!running) start_run();
  const recipe& recipe = current();
  const stopwatch clock;
  trainer_.step(recipe, static_cast<std::uint64_t>(current_seed()), teacher, *running);
  unfinished.seconds += clock.seconds();

  const ba::index_t steps = options_.training.steps(recipe);
  const ba::index_t interval = std::max<ba::index_t>(1, steps / options_.curve_points);
  if (running->step % interval == 0 || running->step == steps) add_curve_point();
  if (running->step == steps) finish_run();
}

void experiment::start_run() {
  if (current_index() == 0) {
    running.emplace(initial_parameters<float>(
        options_.training.shape, random_source::seed_of(initial_weights, std::ssize(seeds))));
    seeds.emplace_back();
    unfinished = {};
    return;
  }
  running.emplace(teacher);
  unfinished = {};
  add_curve_point();
}

void experiment::add_curve_point() {
  const score held_out = held_out_.measure(trainer_.model(), running->weights, mode_of(current()),
                                           options_.curve_batches, workers_);
  unfinished.curve.push_back({running->step, held_out.relative_accuracy});
}

void experiment::finish_run() {
  const auto measure = [&](std::span<const float> weights, attention_mode mode) {
    return held_out_.measure(trainer_.model(), weights, mode, held_out_.batches(), workers_);
  };
  unfinished.held_out = measure(running->weights, mode_of(current()));
  if (current_index() == 0) {
    teacher = running->weights;
    seeds.back().untrained = measure(teacher, attention_mode::block);
  }
  seeds.back().runs.push_back(std::move(unfinished));
  running.reset();
}

double experiment::step_work(const recipe& r) {
  // A backward pass costs two forward passes.
  switch (r.objective) {
    case objective::language_modelling:
      return 3;
    case objective::block_fine_tuning:
      return 6;
    case objective::block_distillation:
      return 4;
  }
  return 0;
}

double experiment::total_work() const {
  double work = 0;
  for (const recipe& r : recipes_) {
    work += step_work(r) * static_cast<double>(options_.training.steps(r));
  }
  return work * static_cast<double>(options_.seeds);
}

double experiment::done_work() const {
  double work = 0;
  for (const seed_results& seed : seeds) {
    for (std::size_t i = 0; i < seed.runs.size(); ++i) {
      work += step_work(recipes_[i]) * static_cast<double>(options_.training.steps(recipes_[i]));
    }
  }
  return running ? work + step_work(current()) * static_cast<double>(running->step) : work;
}

std::uint64_t checksum(const experiment& run) {
  // FNV-1a over 64-bit words.
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&hash](std::uint64_t word) { hash = (hash ^ word) * 0x100000001b3; };
  const auto add_real = [&](double value) { add(std::bit_cast<std::uint64_t>(value)); };
  const auto add_weights = [&](std::span<const float> weights) {
    for (const float weight : weights) add(std::bit_cast<std::uint32_t>(weight));
  };
  const auto add_score = [&](const score& s) {
    add_real(s.relative_accuracy);
    add_real(s.direct_accuracy);
    add_real(s.relative_perplexity);
  };
  for (const seed_results& seed : run.seeds) {
    add_score(seed.untrained);
    for (const run_result& result : seed.runs) {
      add_score(result.held_out);
      for (const curve_point& point : result.curve) add_real(point.relative_accuracy);
    }
  }
  add_weights(run.teacher);
  if (run.running) add_weights(run.running->weights);
  return hash;
}

}  // namespace distillation

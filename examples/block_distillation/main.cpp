// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Block distillation from start to end: a full-attention teacher, and students that learn to answer
// with block attention in five ways.

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "checkpoint.hpp"
#include "gradient_check.hpp"
#include "input_error.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "report.hpp"

namespace {

/// Set by Ctrl-C, looked at between steps.
volatile std::sig_atomic_t stop_requested = 0;

distillation::experiment_options experiment_options_of(const distillation::options& options) {
  distillation::experiment_options result;
  result.seeds = options.seeds;
  result.training.shape.vocabulary = distillation::vocabulary_size();
  if (options.quick) {
    result.training.teacher_steps = 60;
    result.training.student_steps = 20;
    result.held_out_batches = 2;
    result.curve_batches = 1;
    result.curve_points = 5;
  }
  return result;
}

void print_setting(const distillation::experiment_options& options, int threads) {
  const auto& training = options.training;
  const auto& shape = training.shape;
  const auto sample = distillation::draw_batch(
      {.fewest_blocks = 2, .most_blocks = 2, .sentences_per_block = 3}, 1, 7);
  std::printf("model: %lld layers, width %lld, %lld heads of %lld, %lld parameters; %d threads\n",
              static_cast<long long>(shape.layers), static_cast<long long>(shape.width),
              static_cast<long long>(shape.heads), static_cast<long long>(shape.head_dim),
              static_cast<long long>(distillation::parameter_map(shape).size), threads);
  std::printf("documents: %lld blocks of %lld sentences and a block of questions; a short one:\n",
              static_cast<long long>(training.documents.most_blocks),
              static_cast<long long>(training.documents.sentences_per_block));
  for (blockattn::index_t b = 0; b < sample.layout.blocks(); ++b) {
    const blockattn::index_range tokens = sample.layout.block(b);
    std::printf("  [");
    for (blockattn::index_t i = tokens.begin; i < tokens.end; ++i) {
      std::printf("%s%s", i > tokens.begin ? " " : "",
                  distillation::word(sample.ids[static_cast<std::size_t>(i)]).c_str());
    }
    std::printf("]\n");
  }
  std::printf("training: teacher %lld steps, students %lld steps of %lld tokens, %lld seeds\n\n",
              static_cast<long long>(training.teacher_steps),
              static_cast<long long>(training.student_steps),
              static_cast<long long>(training.tokens_per_step),
              static_cast<long long>(options.seeds));
  std::fflush(stdout);
}

int train(const distillation::options& options) {
  Eigen::ThreadPool pool(options.threads);
  const blockattn::eigen_executor workers(pool);
  distillation::experiment run(experiment_options_of(options), workers);
  if (options.resume) distillation::load_checkpoint(options.checkpoint, run);
  print_setting(run.options(), options.threads);

  std::signal(SIGINT, [](int) { stop_requested = 1; });
  std::signal(SIGTERM, [](int) { stop_requested = 1; });
  {
    distillation::progress_bar bar(run.total_work(), run.done_work());
    for (long steps = 0; !run.finished(); ++steps) {
      if (stop_requested != 0 || steps == options.stop_after_steps) break;
      const std::string what =
          "seed " + std::to_string(run.current_seed() + 1) + ", " + run.current().name;
      const double work = distillation::experiment::step_work(run.current());
      run.advance();
      bar.advance(work, what);
    }
  }
  if (!run.finished()) {
    distillation::save_checkpoint(options.checkpoint, run);
    std::printf("stopped; --resume --checkpoint %s goes on. checksum %016llx\n",
                options.checkpoint.c_str(),
                static_cast<unsigned long long>(distillation::checksum(run)));
    return stop_requested != 0 ? 128 + SIGINT : EXIT_SUCCESS;
  }
  distillation::print_table(run);
  distillation::draw_curves(run, options.curves);
  std::printf("curves: %s\nchecksum %016llx\n", options.curves.c_str(),
              static_cast<unsigned long long>(distillation::checksum(run)));
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) try {
  const distillation::options options =
      distillation::parse_options(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
  if (options.help) {
    std::fputs(distillation::usage, stdout);
    return EXIT_SUCCESS;
  }
  if (options.check_gradients) {
    return distillation::check_gradients() ? EXIT_SUCCESS : EXIT_FAILURE;
  }
  return train(options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "block_distillation: %s\n", error.what());
  return EXIT_FAILURE;
}

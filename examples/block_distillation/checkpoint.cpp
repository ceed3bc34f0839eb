// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "checkpoint.hpp"

#include <cstdio>
#include <fstream>
#include <type_traits>

#include "input_error.hpp"

namespace distillation {
namespace {

constexpr std::uint64_t magic = 0x31746e7070696b63;

/// One description of the format serves both ways: `writer` and `reader` take the same calls.
class writer {
 public:
  explicit writer(std::ostream& file) : file_(file) {}

  template <class T>
  void value(T& number) requires std::is_arithmetic_v<T> {
    file_.write(reinterpret_cast<const char*>(&number), sizeof(T));
  }
  template <class T, class F>
  void list(std::vector<T>& values, const F& each) {
    std::uint64_t count = values.size();
    value(count);
    for (T& one : values) each(one);
  }
  void numbers(parameter_vector<float>& values) {
    std::uint64_t count = values.size();
    value(count);
    file_.write(reinterpret_cast<const char*>(values.data()),
                static_cast<std::streamsize>(count * sizeof(float)));
  }

 private:
  std::ostream& file_;
};

class reader {
 public:
  reader(std::istream& file, const std::string& path) : file_(file), path_(path) {}

  template <class T>
  void value(T& number) requires std::is_arithmetic_v<T> {
    file_.read(reinterpret_cast<char*>(&number), sizeof(T));
    require(file_.good(), path_, " is not a whole checkpoint");
  }
  template <class T, class F>
  void list(std::vector<T>& values, const F& each) {
    values.assign(count(), T{});
    for (T& one : values) each(one);
  }
  void numbers(parameter_vector<float>& values) {
    values.assign(count(), 0.0F);
    file_.read(reinterpret_cast<char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    require(file_.good(), path_, " is not a whole checkpoint");
  }

 private:
  /// The largest list of an honest checkpoint, the weights, stays far below the limit.
  std::size_t count() {
    std::uint64_t number = 0;
    value(number);
    require(number < (1U << 26), path_, " is not a whole checkpoint");
    return number;
  }

  std::istream& file_;
  const std::string& path_;
};

template <class Stream>
void pass(Stream& stream, score& s) {
  stream.value(s.relative_accuracy);
  stream.value(s.direct_accuracy);
  stream.value(s.relative_perplexity);
}

template <class Stream>
void pass(Stream& stream, run_result& result) {
  pass(stream, result.held_out);
  stream.value(result.seconds);
  stream.list(result.curve, [&](curve_point& point) {
    stream.value(point.step);
    stream.value(point.relative_accuracy);
  });
}

template <class Stream>
void pass(Stream& stream, experiment& run) {
  stream.list(run.seeds, [&](seed_results& seed) {
    pass(stream, seed.untrained);
    stream.list(seed.runs, [&](run_result& result) { pass(stream, result); });
  });
  stream.numbers(run.teacher);
  bool is_running = run.running.has_value();
  stream.value(is_running);
  if (!is_running) return;
  if (!run.running) run.running.emplace(parameter_vector<float>{});
  stream.numbers(run.running->weights);
  stream.numbers(run.running->optimizer.mean());
  stream.numbers(run.running->optimizer.square());
  stream.value(run.running->step);
  pass(stream, run.unfinished);
}

/// Runs whose numbers agree may continue each other's checkpoints.
std::vector<double> fingerprint(const experiment_options& options) {
  const training_options& training = options.training;
  const auto number = [](ba::index_t n) { return static_cast<double>(n); };
  return {number(options.seeds),
          number(options.held_out_batches),
          number(options.curve_batches),
          number(options.curve_points),
          number(parameter_map(training.shape).size),
          number(training.documents.most_blocks),
          number(training.documents.sentences_per_block),
          number(training.tokens_per_step),
          number(training.teacher_steps),
          number(training.student_steps),
          training.teacher_optimizer.learning_rate,
          training.student_optimizer.learning_rate,
          training.growing,
          training.text_weight,
          training.keep_probability};
}

}  // namespace

void save_checkpoint(const std::string& path, experiment& run) {
  const std::string beside = path + ".part";
  {
    std::ofstream file(beside, std::ios::binary);
    writer stream(file);
    std::uint64_t first = magic;
    stream.value(first);
    std::vector<double> options = fingerprint(run.options());
    stream.list(options, [&](double& number) { stream.value(number); });
    pass(stream, run);
    file.close();
    require(file.good(), "cannot write the checkpoint ", beside);
  }
  require(std::rename(beside.c_str(), path.c_str()) == 0, "cannot write the checkpoint ", path);
}

void load_checkpoint(const std::string& path, experiment& run) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), "cannot read the checkpoint ", path);
  reader stream(file, path);
  std::uint64_t first = 0;
  stream.value(first);
  require(first == magic, path, " is not a checkpoint of this program");
  std::vector<double> options;
  stream.list(options, [&](double& number) { stream.value(number); });
  require(options == fingerprint(run.options()), path,
          " is the checkpoint of a run with other options (--quick, --seeds)");
  pass(stream, run);
  const auto size = static_cast<std::size_t>(parameter_map(run.options().training.shape).size);
  const bool whole = std::ssize(run.seeds) <= run.options().seeds &&
                     (run.teacher.empty() || run.teacher.size() == size) &&
                     (!run.running || (run.running->weights.size() == size &&
                                       run.running->optimizer.mean().size() == size &&
                                       run.running->optimizer.square().size() == size));
  require(whole && file.peek() == std::ifstream::traits_type::eof(), path,
          " is not a whole checkpoint");
}

}  // namespace distillation

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_distill.hpp"

#include <blockattn/cuda/distillation_loss.cuh>
#include <blockattn/cuda/label_log_probabilities.cuh>
#include <blockattn/cuda/token_weights.cuh>

#include "cuda/device_images.cuh"

namespace blockattn_test {

namespace {

template <class T>
heads_view<T> logits_as_heads(const logits_view<T>& logits) {
  return {logits.data, logits ? logits.tokens : 0, 1, logits.vocabulary, logits.token_stride, 0};
}
template <class T>
logits_view<T> as_logits(const tensor_image<T>& image, const logits_view<T>& host) {
  return {image.view().data, host.tokens, host.vocabulary, host.token_stride};
}

/// A span on the device.
template <class T>
class span_image {
 public:
  explicit span_image(std::span<T> host) : size_(host.size()), image_(as_heads(host)) {}
  std::span<T> span() const { return {image_.view().data, size_}; }
  void bring_back() const { image_.bring_back(); }

 private:
  std::size_t size_;
  tensor_image<T> image_;
};

/// Calls enqueue(stream) and waits.
template <class Enqueue>
void run_on_device(const Enqueue& enqueue) {
  cudaStream_t stream = nullptr;
  require_success(cudaStreamCreate(&stream), "cudaStreamCreate");
  enqueue(stream);
  require_success(cudaStreamSynchronize(stream), "the call");
  require_success(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

}  // namespace

template <class Teacher, class Student, class Gradient>
double cuda_distillation::distillation_loss(
    const distillation_arguments<Teacher, Student, Gradient>& arguments,
    const distillation_options& options) const {
  const auto& a = arguments;
  const bool in_place = a.d_student && static_cast<const void*>(a.d_student.data) ==
                                           static_cast<const void*>(a.student.data);
  const tensor_image teacher(logits_as_heads(a.teacher));
  const tensor_image student(logits_as_heads(a.student));
  const tensor_image d_student(logits_as_heads(a.d_student));
  const span_image ids(a.top_k.ids);
  const span_image log_probabilities(a.top_k.log_probabilities);
  const span_image rest_mass(a.top_k.rest_mass);
  const span_image weights(a.weights);
  const span_image ignored(a.ignored);
  const span_image labels(a.labels);
  const span_image token_losses(a.token_losses);
  double loss = -1;
  const span_image device_loss(std::span<double>(&loss, 1));
  auto student_view = as_logits(student, a.student);
  if (in_place) {
    student_view.data = reinterpret_cast<const Student*>(as_logits(d_student, a.d_student).data);
  }
  const auto size =
      static_cast<std::size_t>(cuda::distillation_loss_workspace_size(a.student.tokens));
  constexpr std::size_t canary = 1024;
  const device_bytes workspace(size + canary);  // holds NaN
  run_on_device([&](cudaStream_t stream) {
    cuda::distillation_loss(
        distillation_arguments<Teacher, Student, Gradient>{
            .teacher = as_logits(teacher, a.teacher),
            .top_k = {.ids = ids.span(),
                      .log_probabilities = log_probabilities.span(),
                      .rest_mass = rest_mass.span()},
            .student = student_view,
            .weights = weights.span(),
            .ignored = ignored.span(),
            .labels = labels.span(),
            .d_student = as_logits(d_student, a.d_student),
            .token_losses = token_losses.span()},
        options, device_loss.span().data(), workspace.span().first(size), stream);
  });
  const std::vector<std::byte> after = workspace.read();
  if (std::count(after.end() - canary, after.end(), std::byte{0xff}) != canary)
    throw std::runtime_error("the device wrote behind its workspace");
  if (!in_place) student.bring_back();
  const auto bring_back = [](const auto&... images) { (images.bring_back(), ...); };
  bring_back(teacher, d_student, ids, log_probabilities, rest_mass, weights, ignored, labels,
             token_losses, device_loss);
  return loss;
}

#define BLOCKATTN_TEST_DISTILLATION(T, S, G)                                                   \
  template double cuda_distillation::distillation_loss(const distillation_arguments<T, S, G>&, \
                                                       const distillation_options&) const;
BLOCKATTN_TEST_DISTILLATION(float, float, float)
BLOCKATTN_TEST_DISTILLATION(bfloat16, bfloat16, bfloat16)
BLOCKATTN_TEST_DISTILLATION(float16, float16, float16)
BLOCKATTN_TEST_DISTILLATION(float16, bfloat16, float)
BLOCKATTN_TEST_DISTILLATION(float, float16, float16)
#undef BLOCKATTN_TEST_DISTILLATION

void refused_distillation_loss(const distillation_arguments<float>& arguments,
                               const distillation_options& options,
                               std::span<std::byte> workspace) {
  try {
    cuda::detail::check_distillation_call("", arguments, options);
    blockattn::detail::check_workspace(
        "", workspace, cuda::distillation_loss_workspace_size(arguments.student.tokens));
  } catch (const error&) {
    cuda::distillation_loss(arguments, options, nullptr, workspace, nullptr);
  }
}

index_t device_loss_workspace_size(index_t tokens) {
  return cuda::distillation_loss_workspace_size(tokens);
}

template <class Logit>
void device_label_log_probabilities(const label_log_probability_arguments<Logit>& arguments) {
  const tensor_image logits(logits_as_heads(arguments.logits));
  const span_image labels(arguments.labels);
  const span_image log_probabilities(arguments.log_probabilities);
  run_on_device([&](cudaStream_t stream) {
    cuda::label_log_probabilities(
        label_log_probability_arguments<Logit>{.logits = as_logits(logits, arguments.logits),
                                               .labels = labels.span(),
                                               .log_probabilities = log_probabilities.span()},
        stream);
  });
  logits.bring_back();
  labels.bring_back();
  log_probabilities.bring_back();
}

template void device_label_log_probabilities(const label_log_probability_arguments<float>&);
template void device_label_log_probabilities(const label_log_probability_arguments<bfloat16>&);
template void device_label_log_probabilities(const label_log_probability_arguments<float16>&);

void device_label_gaps(std::span<const float> teacher,
                       std::span<const float> student,
                       std::span<float> scores) {
  const span_image on_teacher(teacher);
  const span_image on_student(student);
  const span_image on_scores(scores);
  const bool in_place = student.data() == scores.data() && !scores.empty();
  run_on_device([&](cudaStream_t stream) {
    cuda::label_gaps(on_teacher.span(), in_place ? on_scores.span() : on_student.span(),
                     on_scores.span(), stream);
  });
  on_teacher.bring_back();
  on_student.bring_back();
  on_scores.bring_back();
}

void device_token_weights(const token_weight_arguments<float>& arguments,
                          const token_weight_options& options) {
  const bool in_place =
      !arguments.weights.empty() && arguments.scores.data() == arguments.weights.data();
  const span_image scores(arguments.scores);
  const span_image ignored(arguments.ignored);
  const span_image weights(arguments.weights);
  run_on_device([&](cudaStream_t stream) {
    cuda::token_weights({.scores = in_place ? weights.span() : scores.span(),
                         .ignored = ignored.span(),
                         .weights = weights.span()},
                        options, stream);
  });
  scores.bring_back();
  ignored.bring_back();
  weights.bring_back();
}

void refused_label_log_probabilities(const label_log_probability_arguments<float>& arguments) {
  try {
    blockattn::detail::check_label_log_probability_shapes("", arguments);
  } catch (const error&) {
    cuda::label_log_probabilities(arguments, nullptr);
  }
}

void refused_label_gaps(std::span<const float> teacher,
                        std::span<const float> student,
                        std::span<float> scores) {
  try {
    blockattn::detail::check_label_gaps<float>("", teacher, student, scores);
  } catch (const error&) {
    cuda::label_gaps(teacher, student, scores, nullptr);
  }
}

void refused_token_weights(const token_weight_arguments<float>& arguments,
                           const token_weight_options& options) {
  try {
    blockattn::detail::check_token_weight_shapes("", arguments, options);
  } catch (const error&) {
    cuda::token_weights(arguments, options, nullptr);
  }
}

}  // namespace blockattn_test

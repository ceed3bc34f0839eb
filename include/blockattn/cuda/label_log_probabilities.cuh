// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/distillation_loss.cuh>
#include <blockattn/distill/label_log_probability_arguments.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// log softmax(row)[label] of one token; one cta for each token.
template <class Pieces>
__global__ void __launch_bounds__(token_threads, 2)
    label_log_probability_kernel(logits_rows logits,
                                 int vocabulary,
                                 const std::int32_t* labels,
                                 exponent_scale scale,
                                 float* log_probabilities) {
  using logit_type = typename Pieces::student_type;
  const index_t token = blockIdx.x;
  const int label = labels[token];
  if (label < 0) {
    if (threadIdx.x == 0) log_probabilities[token] = 0;
    return;
  }
  const auto* const row = logits.row<const logit_type>(token);
  exponential_sum sum;
  row_reader<Pieces>(nullptr, row, nullptr, vocabulary, 0, nullptr).read([&](const auto& piece) {
    sum.add_student(piece, scale);
  });
  sum.join();
  if (threadIdx.x != 0) return;
  const float logit = label < vocabulary ? load_value(row + label) : NAN;
  log_probabilities[token] = static_cast<float>(ln_2 * sum.log2_probability(logit, scale));
}

template <int Threads = 256>
__global__ void __launch_bounds__(Threads)
    label_gap_kernel(const float* teacher, const float* student, float* scores, index_t tokens) {
  const index_t token = index_t{blockIdx.x} * Threads + threadIdx.x;
  if (token < tokens) scores[token] = fabsf(teacher[token] - student[token]);
}

}  // namespace detail

/// `blockattn::label_log_probabilities` on the device: log softmax(logits_t)[label_t], natural; 0
/// for a token without a label, whose row is not read. All memory is device memory; logits are
/// bf16, fp16 or fp32. The bits are minus those that `distillation_loss` writes to token_losses
/// where labels alone weigh and its gradient would have the logits' type.
///
/// Only enqueues on `stream`; reads each row once. Throws `error` on lengths that disagree; labels
/// are not checked, one outside the vocabulary gives NaN.
template <class Logit = float>
void label_log_probabilities(const label_log_probability_arguments<Logit>& arguments,
                             cudaStream_t stream) {
  constexpr const char* function = "cuda::label_log_probabilities";
  static_assert(std::is_same_v<accumulator_t<Logit>, float>,
                "cuda::label_log_probabilities: logits must be bf16, fp16 or fp32");
  blockattn::detail::check_label_log_probability_shapes(function, arguments);
  detail::check_device_rows(function, arguments.logits);
  const auto& logits = arguments.logits;
  if (logits.tokens == 0) return;
  using stored = detail::stored_type<format_of<Logit>>;
  detail::label_log_probability_kernel<detail::row_pieces<detail::absent_values, stored, stored>>
      <<<static_cast<unsigned>(logits.tokens), detail::token_threads, 0, stream>>>(
          detail::logits_rows_of(logits), static_cast<int>(logits.vocabulary),
          arguments.labels.data(), detail::exponent_scale_of(1),
          arguments.log_probabilities.data());
  detail::require_success(cudaGetLastError(), function, "the launch");
}

/// `blockattn::label_gaps` on the device: scores = |teacher - student|, of device memory; `scores`
/// may be an input. Only enqueues on `stream`. Throws `error` when lengths disagree.
inline void label_gaps(std::span<const float> teacher,
                       std::span<const float> student,
                       std::span<float> scores,
                       cudaStream_t stream) {
  constexpr const char* function = "cuda::label_gaps";
  blockattn::detail::check_label_gaps<float>(function, teacher, student, scores);
  if (scores.empty()) return;
  constexpr int threads = 256;
  const auto tokens = static_cast<index_t>(scores.size());
  detail::label_gap_kernel<threads>
      <<<static_cast<unsigned>(ceil_divide(tokens, threads)), threads, 0, stream>>>(
          teacher.data(), student.data(), scores.data(), tokens);
  detail::require_success(cudaGetLastError(), function, "the launch");
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda

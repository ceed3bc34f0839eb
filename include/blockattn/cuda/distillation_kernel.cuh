// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/jensen_shannon_row.cuh>
#include <blockattn/cuda/kl_row.cuh>
#include <blockattn/cuda/row_reader.cuh>
#include <blockattn/cuda/top_k_row.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// l_t of one token and its row of the gradient; one cta for each token. Row is a divergence.
template <class Row, class Pieces>
__global__ void __launch_bounds__(token_threads, 2)
    distillation_kernel(const __grid_constant__ distillation_parameters p) {
  extern __shared__ __align__(16) unsigned char row_memory[];
  struct factors {
    typename Row::factors row;
    float labels;  ///< of the terms of the labels' own softmax
    float label;   ///< taken from the label's gradient
  };
  __shared__ factors shared_factors;
  __shared__ float label_logit;  // of the first thread, and not in a register
  using student_type = typename Pieces::student_type;
  using gradient_type = typename Pieces::gradient_type;
  const index_t token = blockIdx.x;
  const bool is_first = threadIdx.x == 0;
  const auto* const student_row = p.student.row<const student_type>(token);
  auto* const d_row = p.d_student.row<gradient_type>(token);
  const row_reader<Pieces> reader(p.teacher.row<const typename Pieces::teacher_type>(token),
                                  student_row, d_row, p.vocabulary, p.kept,
                                  row_memory + (p.k > 0 ? 4 * bitmap_words(p.vocabulary) : 0));
  const int label = p.labels != nullptr ? p.labels[token] : -1;
  if (p.weights.of(token) == 0 || (label < 0 && p.options.label_weight == 1)) {
    if (d_row != nullptr) reader.write_zeros();
    if (!is_first) return;
    p.weighted_losses[token] = 0;
    if (p.token_losses != nullptr) p.token_losses[token] = 0;
    return;
  }

  // What reads the student's row comes first: the gradient may take its place.
  if (is_first)
    label_logit = 0 <= label && label < p.vocabulary ? load_value(student_row + label) : NAN;
  const bool labels_apart = p.labels_apart && label >= 0;
  Row row(row_context{p, token, reinterpret_cast<std::uint32_t*>(row_memory)});
  exponential_sum labels;
  row.sum(reader, [&](const auto& piece) {
    if (labels_apart) labels.add_student(piece, p.unit_scale);
  });
  if (labels_apart) labels.join();

  if (is_first) {
    const double total = p.given_total_weight > 0 ? p.given_total_weight : *p.total_weight;
    const double row_weight = p.options.gradient_scale * p.weights.of(token) / total;
    const double label_weight = label >= 0 ? row_weight * p.options.label_weight : 0;
    shared_factors = {
        row.factors_for({row_weight * p.gradient_weight, labels_apart ? 0 : label_weight}),
        labels_apart ? static_cast<float>(label_weight / labels.total) : 0,
        static_cast<float>(label_weight)};
  }
  __syncthreads();
  if (is_first) {  // while the others go on
    double loss = p.divergence_weight * row.divergence();
    if (label >= 0) {
      const double log2_label = labels_apart ? labels.log2_probability(label_logit, p.unit_scale)
                                             : row.student().log2_probability(label_logit, p.scale);
      loss -= p.options.label_weight * ln_2 * log2_label;
    }
    p.weighted_losses[token] = p.weights.of(token) * loss;
    if (p.token_losses != nullptr) p.token_losses[token] = static_cast<float>(loss);
  }
  if (d_row == nullptr) return;
  const factors f = shared_factors;
  const auto with_labels = [&](float gradient, float student) {
    if (!labels_apart) return gradient;
    return fmaf(f.labels, exp2_approximate(p.unit_scale.exponent(student, labels.reference)),
                gradient);
  };
  reader.read_again([&](const auto& piece) {
    float values[Pieces::width] = {};
    unsigned wanted = 0;
#pragma unroll
    for (int i = 0; i < Pieces::width; ++i) {
      if (!piece.has(i) || row.lists(piece.token(i))) continue;
      const float student = piece.student(i);
      values[i] = with_labels(row.gradient(piece.teacher(i), student, f.row), student);
      wanted |= 1U << i;
    }
    reader.write(piece, values, wanted);
  });
  row.for_each_listed(f.row, [&](int id, float student, float gradient) {
    store_value(d_row + id, with_labels(gradient, student) - (id == label ? f.label : 0));
  });
  if (label < 0) return;
  __syncthreads();
  if (!is_first || label >= p.vocabulary || row.lists(label)) return;
  float teacher = 0;
  if constexpr (Row::reads_teacher)
    teacher = load_value(p.teacher.row<const typename Pieces::teacher_type>(token) + label);
  store_value(d_row + label,
              with_labels(row.gradient(teacher, label_logit, f.row), label_logit) - f.label);
}

/// The sum of the weights, in an order that depends on their number alone. One cta.
template <int Threads = token_threads>
__global__ void __launch_bounds__(Threads)
    sum_weights_kernel(device_weights weights, index_t tokens, double* total) {
  double sum[1] = {0};
  for (index_t token = threadIdx.x; token < tokens; token += Threads) sum[0] += weights.of(token);
  sum_over_cta(sum);
  if (threadIdx.x == 0) *total = sum[0];
}

/// The sum of the weighted losses by the total weight, 0 without weight. One cta.
template <int Threads = token_threads>
__global__ void __launch_bounds__(Threads) mean_loss_kernel(const double* weighted_losses,
                                                            index_t tokens,
                                                            double given_total_weight,
                                                            const double* total_weight,
                                                            double* loss) {
  double sum[1] = {0};
  for (index_t token = threadIdx.x; token < tokens; token += Threads)
    sum[0] += weighted_losses[token];
  sum_over_cta(sum);
  if (threadIdx.x != 0) return;
  const double total = given_total_weight > 0 ? given_total_weight : *total_weight;
  *loss = total > 0 ? sum[0] / total : 0;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/kl_row.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What an outcome's probabilities p and q are of their mixture m = b p + (1 - b) q. With
/// d = log2(q / p) and u = m / max(p, q), which lies in [min(b, 1 - b), 1],
/// log2(p / m) = -max(d, 0) - log2 u and log2(q / m) = min(d, 0) - log2 u.
struct mixture {
  float p_over_m, q_over_m;  ///< log2

  __device__ __forceinline__ mixture(float log2_p, float log2_q, float share) {
    const float other_share = 1 - share;
    const float d = log2_q - log2_p;
    const float smaller = exp2_approximate(-fabsf(d));  // of p and q, by the larger
    const float u = d < 0 ? fmaf(other_share, smaller, share) : fmaf(share, smaller, other_share);
    const float log2_u = log2f(u);
    p_over_m = -fmaxf(d, 0) - log2_u;
    q_over_m = fminf(d, 0) - log2_u;
  }
};

/// KL of both distributions of a row from their mixture, by a second pass over the row. The
/// gradient is (1 - b) q (log(q / m) - KL(q || m)).
class jensen_shannon_row : public no_listed_tokens {
 public:
  static constexpr bool reads_teacher = true;
  struct factors {
    float first, second;
  };

  __device__ __forceinline__ explicit jensen_shannon_row(const row_context& row) : p_(row.p) {}

  template <class Reader, class Also>
  __device__ __forceinline__ void sum(const Reader& reader, const Also& also) {
    reader.read([&](const auto& piece) {
      teacher_.add_teacher(piece, p_.scale);
      student_.add_student(piece, p_.scale);
      also(piece);
    });
    teacher_.join();
    student_.join();
    teacher_offset_ = -log2f(teacher_.total);
    student_offset_ = -log2f(student_.total);

    float sums[2] = {0, 0};
    reader.read_again([&](const auto& piece) {
      float teacher_sum = 0;
      float student_sum = 0;
#pragma unroll
      for (int i = 0; i < Reader::width; ++i) {
        if (!piece.has(i)) continue;
        const logs of = logs_of(piece.teacher(i), piece.student(i));
        const mixture m(of.p, of.q, p_.teacher_share);
        teacher_sum = fmaf(exp2_approximate(of.p), m.p_over_m, teacher_sum);
        student_sum = fmaf(exp2_approximate(of.q), m.q_over_m, student_sum);
      }
      sums[0] += teacher_sum;
      sums[1] += student_sum;
    });
    sum_over_cta(sums);
    teacher_kl_ = sums[0];
    student_kl_ = sums[1];
  }

  __device__ __forceinline__ double divergence() const {
    const double log2_divergence =
        p_.options.teacher_share * teacher_kl_ + (1 - p_.options.teacher_share) * student_kl_;
    return at_least_0(ln_2 * log2_divergence);
  }
  __device__ __forceinline__ const exponential_sum& student() const { return student_; }

  /// q (first log2(q / m) + second).
  __device__ __forceinline__ factors factors_for(const gradient_weights& weights) const {
    const double of_log2 = weights.divergence * (1 - p_.options.teacher_share) * ln_2;
    return {static_cast<float>(of_log2), static_cast<float>(weights.label - of_log2 * student_kl_)};
  }
  __device__ __forceinline__ float gradient(float teacher, float student, const factors& f) const {
    const logs of = logs_of(teacher, student);
    return exp2_approximate(of.q) *
           fmaf(f.first, mixture(of.p, of.q, p_.teacher_share).q_over_m, f.second);
  }

 private:
  /// log2 of the probabilities of one token.
  struct logs {
    float p, q;
  };
  __device__ __forceinline__ logs logs_of(float teacher, float student) const {
    return {p_.scale.exponent(teacher, teacher_.reference) + teacher_offset_,
            p_.scale.exponent(student, student_.reference) + student_offset_};
  }

  const distillation_parameters& p_;
  exponential_sum teacher_, student_;
  float teacher_offset_ = 0, student_offset_ = 0;
  float teacher_kl_ = 0, student_kl_ = 0;  ///< KL(p || m) and KL(q || m) by ln 2
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

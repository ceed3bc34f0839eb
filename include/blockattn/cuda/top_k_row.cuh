// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/jensen_shannon_row.cuh>
#include <blockattn/cuda/stored_value.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// 32-bit words of a row's bitmap: whole vectors of 16 bytes.
__host__ __device__ constexpr int bitmap_words(int vocabulary) {
  return (vocabulary + 127) / 128 * 4;
}

/// A row whose teacher is known by its k most likely tokens. Outcomes: those tokens, shared out
/// among the threads, and the rest, summed over the other tokens: never 1 minus the others. A
/// bitmap tells them apart. An id outside the vocabulary makes the row
/// NaN.
template <class Student>
class top_k_row {
 public:
  static constexpr bool reads_teacher = false;
  struct factors {
    float divergence, label;  ///< of gradient_weights
    float teacher_mass;       ///< of all outcomes
    float mean_slope;         ///< sum of q slope
    float rest;               ///< of 2^y of the tokens that are not listed
  };

  __device__ __forceinline__ explicit top_k_row(const row_context& row)
      : p_(row.p), token_(static_cast<int>(row.token)), bitmap_(row.bitmap) {}

  template <class Reader, class Also>
  __device__ __forceinline__ void sum(const Reader& reader, const Also& also) {
    fill_bitmap();
    reader.read([&](const auto& piece) {
      rest_.add(
          piece, p_.scale, [&](int i) { return piece.student(i); },
          [&](int i) { return !lists(piece.token(i)); });
      also(piece);
    });
    all_ = rest_;
    for (int j = thread(); j < p_.k; j += token_threads) {
      const float logit = student_logit(j);
      all_.raise(logit, p_.scale);
      all_.total += exp2_approximate(p_.scale.exponent(logit, all_.reference));
    }
    rest_.join();
    all_.join();

    log2_total_ = log2f(all_.total);
    log2_rest_mass_ = teacher_rest();
    float sums[3] = {0, 0, 0};  // of p, the divergence by ln 2, q slope
    for (int j = thread(); j < p_.k; j += token_threads) add(listed(j), sums);
    if (thread() == 0 && rest_.total > 0) add(rest(), sums);
    sum_over_cta(sums);
    teacher_mass_ = sums[0];
    divergence_ = sums[1];
    mean_slope_ = sums[2];
  }

  __device__ __forceinline__ double divergence() const { return ln_2 * divergence_; }
  __device__ __forceinline__ const exponential_sum& student() const { return all_; }

  __device__ __forceinline__ factors factors_for(const gradient_weights& weights) const {
    factors f{static_cast<float>(weights.divergence), static_cast<float>(weights.label),
              teacher_mass_, mean_slope_, 0};
    if (rest_.total > 0) f.rest = gradient_of(rest(), f) / rest_.total;
    return f;
  }
  /// Of a token that is not listed.
  __device__ __forceinline__ float gradient(float /*teacher*/,
                                            float student,
                                            const factors& f) const {
    return f.rest * exp2_approximate(p_.scale.exponent(student, rest_.reference));
  }

  __device__ __forceinline__ bool lists(int token) const {
    return (bitmap_[token / 32] >> token % 32 & 1U) != 0;
  }
  /// Calls visit(token, student's logit, gradient) for this thread's listed tokens. Reads logits
  /// that nobody has overwritten yet.
  template <class Visit>
  __device__ __forceinline__ void for_each_listed(const factors& f, const Visit& visit) const {
    for (int j = thread(); j < p_.k; j += token_threads) {
      if (!is_token(id(j))) continue;
      visit(id(j), student_logit(j), gradient_of(listed(j), f));
    }
  }

 private:
  /// log2 of what teacher and student give an outcome.
  struct outcome {
    float p, q;
  };

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  /// Of ids and log_probabilities.
  __device__ __forceinline__ index_t first() const { return index_t{token_} * p_.k; }
  __device__ __forceinline__ int id(int j) const { return p_.ids[first() + j]; }
  __device__ __forceinline__ bool is_token(int id) const { return 0 <= id && id < p_.vocabulary; }
  __device__ __forceinline__ float student_logit(int j) const {
    return is_token(id(j)) ? load_value(p_.student.row<const Student>(token_) + id(j)) : NAN;
  }

  __device__ __forceinline__ void fill_bitmap() const {
    for (int i = thread(); i < bitmap_words(p_.vocabulary); i += token_threads) bitmap_[i] = 0;
    __syncthreads();
    for (int j = thread(); j < p_.k; j += token_threads) {
      if (is_token(id(j))) atomicOr(bitmap_ + id(j) / 32, 1U << id(j) % 32);
    }
    __syncthreads();
  }

  /// log2 of what the teacher's rest weighs (see top_k_teacher::rest_mass).
  __device__ __forceinline__ float teacher_rest() const {
    if (p_.rest_mass != nullptr) return log2f(fmaxf(p_.rest_mass[token_], 0x1p-126F));
    double listed[1] = {0};  // fp64, because of the difference
#pragma unroll 1             // whose functions take many registers
    for (int j = thread(); j < p_.k; j += token_threads)
      listed[0] += exp(static_cast<double>(p_.log_probabilities[first() + j]));
    sum_over_cta(listed);
    return log2f(fmaxf(static_cast<float>(1 - listed[0]), 0x1p-23F));
  }
  __device__ __forceinline__ outcome listed(int j) const {
    constexpr float log2_e = 1.4426950408889634F;
    return {p_.log_probabilities[first() + j] * log2_e,
            p_.scale.exponent(student_logit(j), all_.reference) - log2_total_};
  }
  __device__ __forceinline__ outcome rest() const {
    return {log2_rest_mass_, log2f(rest_.total) + (rest_.reference - all_.reference) - log2_total_};
  }

  /// The derivative of the divergence by q, up to a constant, by ln 2; 0 for forward KL.
  __device__ __forceinline__ float slope(const outcome& of) const {
    switch (p_.options.divergence) {
      case blockattn::divergence::forward_kl:
        return 0;
      case blockattn::divergence::reverse_kl:
        return of.q - of.p;
      default:
        return (1 - p_.teacher_share) * mixture(of.p, of.q, p_.teacher_share).q_over_m;
    }
  }
  __device__ __forceinline__ void add(const outcome& of, float (&sums)[3]) const {
    const float p = exp2_approximate(of.p);
    const float q_slope = exp2_approximate(of.q) * slope(of);
    sums[0] += p;
    sums[1] += q_slope;
    sums[2] += q_slope;
    if (p_.options.divergence == blockattn::divergence::forward_kl) sums[1] += p * (of.p - of.q);
    if (p_.options.divergence == blockattn::divergence::jensen_shannon)
      sums[1] += p_.teacher_share * p * mixture(of.p, of.q, p_.teacher_share).p_over_m;
  }
  /// Of the whole outcome.
  __device__ __forceinline__ float gradient_of(const outcome& of, const factors& f) const {
    constexpr auto by_log2 = static_cast<float>(ln_2);
    const float q = exp2_approximate(of.q);
    const float gradient = p_.options.divergence == blockattn::divergence::forward_kl
                               ? f.teacher_mass * q - exp2_approximate(of.p)
                               : by_log2 * q * (slope(of) - f.mean_slope);
    return f.divergence * gradient + f.label * q;
  }

  const distillation_parameters& p_;
  int token_;
  std::uint32_t* bitmap_;
  exponential_sum rest_, all_;
  float log2_total_ = 0, log2_rest_mass_ = 0;
  float teacher_mass_ = 0, divergence_ = 0, mean_slope_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/distillation_parameters.cuh>

/// \file
/// Forward and reverse KL of one row, and the cross-entropy of labels alone. With x = log2 of the
/// teacher's terms and y of the student's, relative to their references, P and Q the sums of 2^x
/// and 2^y:
///   KL(p || q) = ln 2 (sum 2^x (x - y) / P - log2 P + log2 Q),  gradient q - p
///   KL(q || p) = ln 2 (sum 2^y (y - x) / Q - log2 Q + log2 P),  gradient q (log(q / p) - KL)
///
/// A row is a thread's share of it until `sum` has joined them. Factors are worked out by one
/// thread, in fp64, and used by all.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

inline constexpr double ln_2 = 0.69314718055994531;

/// NaN for NaN.
__device__ __forceinline__ double at_least_0(double value) { return value < 0 ? 0 : value; }

/// The tokens that the teacher lists one by one: none, unless it is a top-k teacher.
struct no_listed_tokens {
  __device__ __forceinline__ bool lists(int /*token*/) const { return false; }
  template <class Factors, class Visit>
  __device__ __forceinline__ void for_each_listed(const Factors&, const Visit&) const {}
};

struct forward_kl {
  static constexpr bool weighs_teacher = true;
};
struct reverse_kl {
  static constexpr bool weighs_teacher = false;
};

template <class Kind>
class kl_row : public no_listed_tokens {
 public:
  static constexpr bool reads_teacher = true;
  struct factors {
    float first, second;
  };

  __device__ __forceinline__ explicit kl_row(const row_context& row) : scale_(row.p.scale) {}

  /// Reads the row once; `also(piece)` sees every piece too.
  template <class Reader, class Also>
  __device__ __forceinline__ void sum(const Reader& reader, const Also& also) {
    reader.read([&](const auto& piece) {
      add(piece);
      also(piece);
    });
    float largest[2] = {teacher_.reference, student_.reference};
    max_over_cta(largest);
    raise(largest[0], largest[1]);
    float sums[3] = {teacher_.total, student_.total, cross_};
    sum_over_cta(sums);
    teacher_.total = sums[0];
    student_.total = sums[1];
    cross_ = sums[2];
  }

  /// In nats; rounding may leave it below 0, which no divergence is.
  __device__ __forceinline__ double divergence() const {
    const double log2_ratio = log2(static_cast<double>(student_.total) / teacher_.total);
    const double log2_divergence = Kind::weighs_teacher ? mean() + log2_ratio : mean() - log2_ratio;
    return at_least_0(ln_2 * log2_divergence);
  }
  __device__ __forceinline__ const exponential_sum& student() const { return student_; }

  /// forward: second 2^y + first 2^x; reverse: 2^y (first (y - x) + second).
  __device__ __forceinline__ factors factors_for(const gradient_weights& weights) const {
    if constexpr (Kind::weighs_teacher) {
      return {static_cast<float>(-weights.divergence / teacher_.total),
              static_cast<float>((weights.divergence + weights.label) / student_.total)};
    } else {
      const double of_log2 = weights.divergence * ln_2;
      return {static_cast<float>(of_log2 / student_.total),
              static_cast<float>((weights.label - of_log2 * mean()) / student_.total)};
    }
  }
  __device__ __forceinline__ float gradient(float teacher, float student, const factors& f) const {
    const float x = scale_.exponent(teacher, teacher_.reference);
    const float y = scale_.exponent(student, student_.reference);
    if constexpr (Kind::weighs_teacher) {
      // Two rounded products: equal terms then cancel exactly, which a fused multiply-add does not.
      return __fadd_rn(__fmul_rn(f.second, exp2_approximate(y)),
                       __fmul_rn(f.first, exp2_approximate(x)));
    } else {
      return exp2_approximate(y) * fmaf(f.first, y - x, f.second);
    }
  }

 private:
  __device__ __forceinline__ double mean() const {
    return static_cast<double>(cross_) / (Kind::weighs_teacher ? teacher_ : student_).total;
  }
  /// Makes room for terms up to the powers of 2; x and y of the terms so far move by the shifts.
  __device__ __forceinline__ void raise(float teacher_reference, float student_reference) {
    const float x_shift = teacher_.raise_to(teacher_reference);
    const float y_shift = student_.raise_to(student_reference);
    cross_ = Kind::weighs_teacher
                 ? fmaf(cross_, exp2_of_integer(x_shift), teacher_.total * (x_shift - y_shift))
                 : fmaf(cross_, exp2_of_integer(y_shift), student_.total * (y_shift - x_shift));
  }
  template <class Piece>
  __device__ __forceinline__ void add(const Piece& piece) {
    float teacher_largest = -INFINITY;
    float student_largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < Piece::width; ++i) {
      if (!piece.has(i)) continue;
      teacher_largest = fmaxf(teacher_largest, piece.teacher(i));
      student_largest = fmaxf(student_largest, piece.student(i));
    }
    raise(floorf(teacher_largest * scale_.high), floorf(student_largest * scale_.high));
    float p_sum = 0;
    float q_sum = 0;
    float cross = 0;
#pragma unroll
    for (int i = 0; i < Piece::width; ++i) {
      if (!piece.has(i)) continue;
      const float x = scale_.exponent(piece.teacher(i), teacher_.reference);
      const float y = scale_.exponent(piece.student(i), student_.reference);
      const float p = exp2_approximate(x);
      const float q = exp2_approximate(y);
      p_sum += p;
      q_sum += q;
      cross = Kind::weighs_teacher ? fmaf(p, x - y, cross) : fmaf(q, y - x, cross);
    }
    teacher_.total += p_sum;
    student_.total += q_sum;
    cross_ += cross;
  }

  const exponent_scale& scale_;
  exponential_sum teacher_, student_;
  float cross_ = 0;
};

/// A row whose loss is that of its label alone.
class label_row : public no_listed_tokens {
 public:
  static constexpr bool reads_teacher = false;
  struct factors {
    float label;
  };

  __device__ __forceinline__ explicit label_row(const row_context& row) : scale_(row.p.scale) {}

  template <class Reader, class Also>
  __device__ __forceinline__ void sum(const Reader& reader, const Also& /*also*/) {
    reader.read([&](const auto& piece) { student_.add_student(piece, scale_); });
    student_.join();
  }
  __device__ __forceinline__ double divergence() const { return 0; }
  __device__ __forceinline__ const exponential_sum& student() const { return student_; }
  __device__ __forceinline__ factors factors_for(const gradient_weights& weights) const {
    return {static_cast<float>(weights.label / student_.total)};
  }
  __device__ __forceinline__ float gradient(float /*teacher*/,
                                            float student,
                                            const factors& f) const {
    return f.label * exp2_approximate(scale_.exponent(student, student_.reference));
  }

 private:
  const exponent_scale& scale_;
  exponential_sum student_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/rope/exact_angle.hpp>
#include <blockattn/rope/rope_options.hpp>
#include <blockattn/rope/scaled_frequencies.hpp>
#include <cmath>
#include <concepts>
#include <span>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// Largest rotary_dim: the cosines and sines of one token fit on the stack.
inline constexpr index_t max_rotary_dim = 512;

/// Largest |position| or |shift| that `rotate` and `reposition` accept.
inline constexpr double max_rope_position = 0x1p52;

/// Rotary position embedding (arXiv 2104.09864) of one layer: immutable, shareable between threads.
/// At position p it maps a row to R_p row = m * U_p row, where U_p turns pair i by the angle
/// p * frequencies()[i] and m is the attention factor (1 except for YaRN). Values from rotary_dim
/// on stay as they are. U_a U_b = U_(a+b), hence (R_p q) . (R_j k) depends on p - j only; shifts
/// use U.
class rope {
 public:
  /// O(rotary_dim). Errors: sizes, factors or list lengths outside the limits that rope_options
  /// states; theta together with frequencies; length-dependent scaling.
  explicit rope(const rope_options& options)
      : head_dim_(options.head_dim),
        rotary_dim_(options.rotary_dim.value_or(options.head_dim)),
        pairing_(options.pairing) {
    detail::require(head_dim_ > 0, "rope: head_dim is ", head_dim_, ", must be positive");
    detail::require(rotary_dim_ >= 0 && rotary_dim_ <= head_dim_ && rotary_dim_ % 2 == 0,
                    "rope: rotary_dim is ", rotary_dim_,
                    ", must be even and in [0, head_dim = ", head_dim_, "]");
    detail::require(rotary_dim_ <= max_rotary_dim, "rope: rotary_dim is ", rotary_dim_,
                    ", more than ", max_rotary_dim);
    detail::check_enumerator("rope", "pairing", pairing_, rope_pairing::interleaved);
    frequencies_ = detail::scaled_rope_frequencies(options, rotary_dim_);
    attention_factor_ = detail::resolved_attention_factor(options);
    rates_.reserve(frequencies_.size());
    for (const double frequency : frequencies_) {
      rates_.push_back(detail::turn_rate(frequency));
    }
  }

  index_t head_dim() const noexcept { return head_dim_; }
  index_t rotary_dim() const noexcept { return rotary_dim_; }
  index_t pairs() const noexcept { return rotary_dim_ / 2; }
  rope_pairing pairing() const noexcept { return pairing_; }

  /// m of R_p = m * U_p.
  double attention_factor() const noexcept { return attention_factor_; }

  /// (pairs) radians per position, after divisors and scaling.
  std::span<const double> frequencies() const noexcept { return frequencies_; }

  /// (pairs) the frequencies as `angles` takes them: for kernels that cannot call it.
  std::span<const detail::turn_rate> rates() const noexcept { return rates_; }

  /// cosines[i] = factor * cos(position * frequencies()[i]), sines alike, for every pair. The
  /// product is reduced exactly, so precision does not fall with the position: before the rounding
  /// to C the error is below factor * 2^-51 * max(1, frequency) everywhere, where an fp64 product
  /// is off by up to 2^-14 at position 2^40 and an fp32 one by whole turns. `position` may be
  /// negative and fractional, |position| <= max_rope_position. With factor 1 this is the shift U; R
  /// takes the attention factor. Kernels pass their own Arch.
  template <class Arch = void, std::floating_point C>
  void angles(double position, C* cosines, C* sines, double factor = 1) const noexcept {
    const detail::split_position split = detail::split<Arch>(position);
    for (std::size_t i = 0; i < rates_.size(); ++i) {
      const detail::cosine_sine angle = detail::exact_angle<Arch>(split, rates_[i]);
      cosines[i] = static_cast<C>(factor * angle.cosine);
      sines[i] = static_cast<C>(factor * angle.sine);
    }
  }

 private:
  index_t head_dim_;
  index_t rotary_dim_;
  rope_pairing pairing_;
  double attention_factor_ = 1;
  std::vector<double> frequencies_;
  std::vector<detail::turn_rate> rates_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI

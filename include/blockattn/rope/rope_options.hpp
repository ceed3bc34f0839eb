// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <optional>
#include <span>
#include <variant>

namespace blockattn::inline BLOCKATTN_ABI {

/// Which two values of a row rotate together, for pair i of rotary_dim / 2. A model is trained with
/// one of them; the other gives nonsense, not an error.
enum class rope_pairing {
  half_split,   ///< (i, i + rotary_dim / 2): rotate_half of transformers, "neox" of llama.cpp
  interleaved,  ///< (2 i, 2 i + 1): GPT-J, Meta's Llama files, "norm" of llama.cpp
};

/// Position interpolation (arXiv 2306.15595): every frequency divided by `factor`.
struct linear_rope_scaling {
  double factor = 1;  ///< >= 1
};

/// Static NTK-aware scaling: theta * factor^(d / (d - 2)) in place of theta, d = rotary_dim > 2.
struct ntk_rope_scaling {
  double factor = 1;  ///< >= 1
};

/// YaRN (arXiv 2309.00071): pairs that turn more than beta_fast times within the original context
/// keep their frequency, those that turn less than beta_slow times have it divided by `factor`, a
/// linear ramp over the pair index lies between. The attention factor is 0.1 ln(factor) + 1.
struct yarn_rope_scaling {
  double factor = 1;            ///< >= 1
  double original_context = 0;  ///< tokens that the model was trained for, > 0
  double beta_fast = 32;        ///< turns, > beta_slow
  double beta_slow = 1;         ///< turns, > 0
};

/// Llama 3.1: pairs with a wavelength of at least original_context / low_freq_factor tokens are
/// divided by `factor`, those of at most original_context / high_freq_factor keep their frequency;
/// in between the frequency is interpolated linearly in 1 / wavelength.
struct llama3_rope_scaling {
  double factor = 8;               ///< >= 1
  double original_context = 8192;  ///< tokens that the model was trained for, > 0
  double low_freq_factor = 1;      ///< > 0
  double high_freq_factor = 4;     ///< > low_freq_factor
};

/// Scalings whose frequencies change with the length of the prompt. They are named so that an
/// engine can pass on what a model file says and get the reason: `rope` always refuses them.
enum class length_dependent_rope_scaling {
  dynamic_ntk,  ///< theta grows with the current length
  longrope,     ///< arXiv 2402.13753 with short and long factors switched by length; one fixed set
                ///< is served by frequency_divisors and attention_factor
};

/// `std::monostate`: none.
using rope_scaling = std::variant<std::monostate,
                                  linear_rope_scaling,
                                  ntk_rope_scaling,
                                  yarn_rope_scaling,
                                  llama3_rope_scaling,
                                  length_dependent_rope_scaling>;

/// What a model file says about its rotary position embedding. The frequency of pair i (radians per
/// position) is theta^(-2 i / rotary_dim), or frequencies[i]; it is divided by
/// frequency_divisors[i], then scaled.
struct rope_options {
  index_t head_dim = 0;  ///< values of a row, > 0
  /// The first values of a row, which rotate; even; default head_dim; 0 = NoPE.
  std::optional<index_t> rotary_dim = std::nullopt;
  rope_pairing pairing = rope_pairing::half_split;
  std::optional<double> theta = std::nullopt;       ///< > 1; default 10000
  std::span<const double> frequencies = {};         ///< (rotary_dim / 2), in place of theta; >= 0
  std::span<const double> frequency_divisors = {};  ///< (rotary_dim / 2) or none (GGUF: rope_freqs)
  rope_scaling scaling = {};
  /// m > 0; default 1, for YaRN 0.1 ln(factor) + 1.
  std::optional<double> attention_factor = std::nullopt;
};

}  // namespace blockattn::inline BLOCKATTN_ABI

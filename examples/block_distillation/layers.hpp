// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "matrix.hpp"

/// \file
/// The elementwise layers and their gradients, for a run of tokens at a time. x is (tokens, width).

namespace distillation {

inline constexpr double norm_epsilon = 1e-5;

/// y_i = x_i * g / rms(x_i), rms(x) = sqrt(mean(x^2) + epsilon); writes 1 / rms for the way back.
template <class X, class G, class Y, class T>
void rms_norm(const X& x, const G& gain, Y&& y, T* inverse_rms) {
  for (ba::index_t i = 0; i < x.rows(); ++i) {
    const T mean_square = x.row(i).squaredNorm() / static_cast<T>(x.cols());
    inverse_rms[i] = 1 / std::sqrt(mean_square + static_cast<T>(norm_epsilon));
    y.row(i) = inverse_rms[i] * x.row(i).cwiseProduct(gain.row(0));
  }
}

/// With n = x / rms: d_gain += sum_i dy_i n_i, and
/// dx += (dy g - n mean(dy g n)) / rms, the two terms being the direct way and the way through rms.
template <class X, class G, class DY, class T, class DX, class DG>
void rms_norm_backward(
    const X& x, const G& gain, const T* inverse_rms, const DY& dy, DX&& dx, DG&& d_gain) {
  for (ba::index_t i = 0; i < x.rows(); ++i) {
    const T factor = inverse_rms[i];
    const T projection = dy.row(i).cwiseProduct(gain.row(0)).dot(x.row(i)) * factor * factor /
                         static_cast<T>(x.cols());
    d_gain.row(0) += factor * dy.row(i).cwiseProduct(x.row(i));
    dx.row(i) += factor * (dy.row(i).cwiseProduct(gain.row(0)) - projection * x.row(i));
  }
}

/// h = silu(gate) up, silu(x) = x / (1 + exp(-x)); gate and up lie side by side.
template <class T, class GateUp>
matrix<T> swiglu(const GateUp& gate_up) {
  const ba::index_t width = gate_up.cols() / 2;
  const auto gate = gate_up.leftCols(width).array();
  return gate / (1 + (-gate).exp()) * gate_up.rightCols(width).array();
}

/// d_gate = dh up s (1 + gate (1 - s)) with s = sigmoid(gate); d_up = dh silu(gate).
template <class T, class GateUp>
matrix<T> swiglu_backward(const GateUp& gate_up, const matrix<T>& dh) {
  const ba::index_t width = gate_up.cols() / 2;
  const auto gate = gate_up.leftCols(width).array();
  const auto up = gate_up.rightCols(width).array();
  const matrix<T> sigmoid = 1 / (1 + (-gate).exp());
  const auto s = sigmoid.array();
  matrix<T> d_gate_up(gate_up.rows(), gate_up.cols());
  d_gate_up.leftCols(width) = dh.array() * up * s * (1 + gate * (1 - s));
  d_gate_up.rightCols(width) = dh.array() * gate * s;
  return d_gate_up;
}

}  // namespace distillation

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/scatter_rows.hpp>
#include <blockattn/layout/scatter_rows_backward.hpp>
#include <utility>

#include "attention.hpp"
#include "layers.hpp"

namespace distillation {

/// A decoder-only transformer with a hand-written backward pass. Every step mirrors its forward
/// step, in reverse order. Between two attentions a token needs no other token, so the work is cut
/// into runs of tokens; in the backward pass each run adds its weight gradients into a vector of
/// its own and these are summed in order: results do not depend on the number of threads.
///
/// Memory of a pass lives in the object and is kept for the next one.
template <class T>
class transformer {
 public:
  /// Refers to `workers`, which must outlive it.
  transformer(const model_shape& shape, const ba::eigen_executor& workers)
      : shape_(shape), map_(shape), workers_(workers), rope_(rope_options(shape)) {}

  const model_shape& shape() const { return shape_; }
  const parameter_map& parameters() const { return map_; }

  /// Scores of the next token for every source token of the axis.
  /// \param weights  (parameters().size)
  /// \param axis     who sees whom; kept until `backward`
  /// \param ids      (source tokens) token ids
  /// \return (source tokens, vocabulary), valid until the next call
  const matrix<T>& forward(std::span<const T> weights,
                           const token_axis<T>& axis,
                           std::span<const int> ids) {
    layers_.resize(map_.layers.size());
    for (layer_memory& memory : layers_) memory.resize(axis.tokens(), shape_);
    embed(weights, axis, ids);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      for_runs(workers_, axis.tokens(), [&](const ba::index_range& rows, ba::index_t /*run*/) {
        project_heads(weights, map_.layers[l], axis, rows, layers_[l]);
      });
      attend(axis, layers_[l]);
      for_runs(workers_, axis.tokens(), [&](const ba::index_range& rows, ba::index_t /*run*/) {
        feed_forward(weights, map_.layers[l], rows, layers_[l]);
      });
    }
    predict(weights, axis);
    return logits_;
  }

  /// The gradient of a loss by all weights.
  /// \param weights, axis, ids  as in the latest `forward`
  /// \param d_logits  (source tokens, vocabulary) the gradient by what `forward` returned
  /// \param gradient  (parameters().size), written
  void backward(std::span<const T> weights,
                const token_axis<T>& axis,
                std::span<const int> ids,
                const matrix<T>& d_logits,
                std::span<T> gradient) {
    const ba::index_t runs = ba::ceil_divide(axis.tokens(), run_grain);
    gradients_.resize(static_cast<std::size_t>(runs));
    for (auto& part : gradients_) part.assign(static_cast<std::size_t>(map_.size), T(0));
    d_states_.resize(axis.tokens(), shape_.width);
    d_qkv_.resize(axis.tokens(), shape_.qkv_width());
    d_attended_.resize(axis.tokens(), shape_.heads * shape_.head_dim);

    predict_backward(weights, axis, d_logits);
    for (std::size_t l = layers_.size(); l-- > 0;) {
      for_runs(workers_, axis.tokens(), [&](const ba::index_range& rows, ba::index_t run) {
        feed_forward_backward(weights, map_.layers[l], rows, layers_[l], part_of(run));
      });
      attend_backward(axis, layers_[l]);
      for_runs(workers_, axis.tokens(), [&](const ba::index_range& rows, ba::index_t run) {
        project_heads_backward(weights, map_.layers[l], axis, rows, layers_[l], part_of(run));
      });
    }
    embed_backward(axis, ids);
    sum_gradients(gradient);
  }

 private:
  /// What the forward pass of one layer leaves for the backward pass.
  struct layer_memory {
    matrix<T> input;                        ///< residual stream before the layer
    matrix<T> qkv;                          ///< queries and keys rotated
    matrix<T> attended;                     ///< (tokens, heads * head_dim)
    std::vector<T> lse;                     ///< (tokens, heads)
    matrix<T> middle;                       ///< residual stream behind attention
    matrix<T> gate_up;                      ///< (tokens, 2 ffn_width)
    std::vector<T> attention_rms, ffn_rms;  ///< (tokens) 1 / rms

    void resize(ba::index_t tokens, const model_shape& shape) {
      const auto count = static_cast<std::size_t>(tokens);
      input.resize(tokens, shape.width);
      qkv.resize(tokens, shape.qkv_width());
      attended.resize(tokens, shape.heads * shape.head_dim);
      lse.resize(count * static_cast<std::size_t>(shape.heads));
      middle.resize(tokens, shape.width);
      gate_up.resize(tokens, 2 * shape.ffn_width);
      attention_rms.resize(count);
      ffn_rms.resize(count);
    }
  };

  static ba::rope_options rope_options(const model_shape& shape) {
    return {.head_dim = shape.head_dim, .rotary_dim = shape.rotary_dim, .theta = shape.rope_theta};
  }

  template <class M>
  static auto rows_of(M& m, const ba::index_range& rows) {
    return m.middleRows(rows.begin, rows.size());
  }
  static T* row_of(std::vector<T>& values, const ba::index_range& rows) {
    return values.data() + rows.begin;
  }
  std::span<T> part_of(ba::index_t run) { return gradients_[static_cast<std::size_t>(run)]; }

  ba::index_t sinks_of(const token_axis<T>& axis) const {
    return axis.layout.sink_options().tokens_per_block;
  }
  ba::heads_view<T> rotated_rows(matrix<T>& qkv, const ba::index_range& rows) const {
    return ba::token_slice(fused_heads<T>{qkv, shape_}.rotated(), rows.begin, rows.size());
  }
  static std::span<const double> positions_of(const token_axis<T>& axis,
                                              const ba::index_range& rows) {
    return std::span(axis.positions)
        .subspan(static_cast<std::size_t>(rows.begin), static_cast<std::size_t>(rows.size()));
  }

  // states = the embedding of each token, with the sinks' at their places
  void embed(std::span<const T> weights, const token_axis<T>& axis, std::span<const int> ids) {
    const auto embedding = view(weights, map_.embedding);
    matrix<T> source(std::ssize(ids), shape_.width);
    for (ba::index_t i = 0; i < source.rows(); ++i) {
      source.row(i) = embedding.row(ids[static_cast<std::size_t>(i)]);
    }
    const auto sinks = view(weights, map_.sinks).topRows(sinks_of(axis));
    states_.resize(axis.tokens(), shape_.width);
    ba::scatter_rows(axis.layout, elements(std::as_const(source)), elements(sinks),
                     elements(states_), shape_.width);
  }

  void embed_backward(const token_axis<T>& axis, std::span<const int> ids) {
    matrix<T> d_source(std::ssize(ids), shape_.width);
    auto d_embedding = view(part_of(0), map_.embedding);
    auto d_sinks = view(part_of(0), map_.sinks).topRows(sinks_of(axis));
    ba::scatter_rows_backward(axis.layout, elements(std::as_const(d_states_)), elements(d_source),
                              elements(d_sinks), shape_.width);
    for (ba::index_t i = 0; i < d_source.rows(); ++i) {
      d_embedding.row(ids[static_cast<std::size_t>(i)]) += d_source.row(i);
    }
  }

  // qkv = rotated(norm(states) W^T)
  void project_heads(std::span<const T> weights,
                     const layer_tensors& layer,
                     const token_axis<T>& axis,
                     const ba::index_range& rows,
                     layer_memory& memory) {
    rows_of(memory.input, rows) = rows_of(states_, rows);
    matrix<T> normed(rows.size(), shape_.width);
    rms_norm(rows_of(states_, rows), view(weights, layer.attention_norm), normed,
             row_of(memory.attention_rms, rows));
    rows_of(memory.qkv, rows).noalias() = normed * view(weights, layer.qkv).transpose();
    ba::rotate(rope_, rotated_rows(memory.qkv, rows), positions_of(axis, rows));
  }

  void attend(const token_axis<T>& axis, layer_memory& memory) {
    const fused_heads<T> heads{memory.qkv, shape_};
    ba::cpu::forward<T>(
        {.q = heads.queries(),
         .k = heads.keys(),
         .v = heads.values(),
         .o = ba::token_major(memory.attended.data(), axis.tokens(), shape_.heads, shape_.head_dim),
         .lse = ba::token_major_lse(memory.lse.data(), axis.tokens(), shape_.heads)},
        axis.plan, {}, workers_);
  }

  // middle = states + attended W^T; states = middle + swiglu(norm(middle) W^T) W^T
  void feed_forward(std::span<const T> weights,
                    const layer_tensors& layer,
                    const ba::index_range& rows,
                    layer_memory& memory) {
    auto middle = rows_of(memory.middle, rows);
    auto gate_up = rows_of(memory.gate_up, rows);
    middle = rows_of(states_, rows);
    middle.noalias() += rows_of(memory.attended, rows) * view(weights, layer.attended).transpose();
    matrix<T> normed(rows.size(), shape_.width);
    rms_norm(middle, view(weights, layer.ffn_norm), normed, row_of(memory.ffn_rms, rows));
    gate_up.noalias() = normed * view(weights, layer.gate_up).transpose();
    const matrix<T> hidden = swiglu<T>(gate_up);
    rows_of(states_, rows) = middle;
    rows_of(states_, rows).noalias() += hidden * view(weights, layer.down).transpose();
  }

  // logits = norm(states without sinks) W^T
  void predict(std::span<const T> weights, const token_axis<T>& axis) {
    const ba::index_t source_tokens = axis.layout.source_tokens();
    source_states_.resize(source_tokens, shape_.width);
    ba::gather_rows(axis.layout, elements(std::as_const(states_)), elements(source_states_),
                    shape_.width);
    source_normed_.resize(source_tokens, shape_.width);
    source_rms_.resize(static_cast<std::size_t>(source_tokens));
    logits_.resize(source_tokens, shape_.vocabulary);
    for_runs(workers_, source_tokens, [&](const ba::index_range& rows, ba::index_t /*run*/) {
      rms_norm(rows_of(source_states_, rows), view(weights, map_.output_norm),
               rows_of(source_normed_, rows), row_of(source_rms_, rows));
      rows_of(logits_, rows).noalias() =
          rows_of(source_normed_, rows) * view(weights, map_.output).transpose();
    });
  }

  void predict_backward(std::span<const T> weights,
                        const token_axis<T>& axis,
                        const matrix<T>& d_logits) {
    matrix<T> d_source = matrix<T>::Zero(source_states_.rows(), shape_.width);
    for_runs(workers_, d_source.rows(), [&](const ba::index_range& rows, ba::index_t run) {
      view(part_of(run), map_.output).noalias() +=
          rows_of(d_logits, rows).transpose() * rows_of(source_normed_, rows);
      const matrix<T> d_normed = rows_of(d_logits, rows) * view(weights, map_.output);
      rms_norm_backward(rows_of(source_states_, rows), view(weights, map_.output_norm),
                        row_of(source_rms_, rows), d_normed, rows_of(d_source, rows),
                        view(part_of(run), map_.output_norm));
    });
    ba::gather_rows_backward(axis.layout, elements(std::as_const(d_source)), elements(d_states_),
                             shape_.width);
  }

  void feed_forward_backward(std::span<const T> weights,
                             const layer_tensors& layer,
                             const ba::index_range& rows,
                             layer_memory& memory,
                             std::span<T> part) {
    auto d_states = rows_of(d_states_, rows);
    const auto middle = rows_of(memory.middle, rows);
    const auto gate_up = rows_of(memory.gate_up, rows);
    const auto gain = view(weights, layer.ffn_norm);
    const matrix<T> hidden = swiglu<T>(gate_up);
    view(part, layer.down).noalias() += d_states.transpose() * hidden;
    const matrix<T> d_hidden = d_states * view(weights, layer.down);
    const matrix<T> d_gate_up = swiglu_backward<T>(gate_up, d_hidden);
    matrix<T> normed(rows.size(), shape_.width);
    rms_norm(middle, gain, normed, row_of(memory.ffn_rms, rows));
    view(part, layer.gate_up).noalias() += d_gate_up.transpose() * normed;
    const matrix<T> d_normed = d_gate_up * view(weights, layer.gate_up);
    // The residual stream keeps its gradient; the branch adds to it.
    rms_norm_backward(middle, gain, row_of(memory.ffn_rms, rows), d_normed, d_states,
                      view(part, layer.ffn_norm));
    view(part, layer.attended).noalias() += d_states.transpose() * rows_of(memory.attended, rows);
    rows_of(d_attended_, rows).noalias() = d_states * view(weights, layer.attended);
  }

  void attend_backward(const token_axis<T>& axis, layer_memory& memory) {
    const fused_heads<T> heads{memory.qkv, shape_};
    const fused_heads<T> gradients{d_qkv_, shape_};
    const auto of_heads = [&](matrix<T>& m) {
      return ba::token_major(m.data(), m.rows(), shape_.heads, shape_.head_dim);
    };
    ba::cpu::backward<T>(
        {.q = heads.queries(),
         .k = heads.keys(),
         .v = heads.values(),
         .o = of_heads(memory.attended),
         .lse = ba::token_major_lse(memory.lse.data(), axis.tokens(), shape_.heads),
         .d_o = of_heads(d_attended_),
         .d_q = gradients.queries(),
         .d_k = gradients.keys(),
         .d_v = gradients.values()},
        axis.plan, {}, workers_);
  }

  void project_heads_backward(std::span<const T> weights,
                              const layer_tensors& layer,
                              const token_axis<T>& axis,
                              const ba::index_range& rows,
                              layer_memory& memory,
                              std::span<T> part) {
    const auto input = rows_of(memory.input, rows);
    const auto gain = view(weights, layer.attention_norm);
    ba::rotate_backward(rope_, rotated_rows(d_qkv_, rows), positions_of(axis, rows));
    matrix<T> normed(rows.size(), shape_.width);
    rms_norm(input, gain, normed, row_of(memory.attention_rms, rows));
    view(part, layer.qkv).noalias() += rows_of(d_qkv_, rows).transpose() * normed;
    const matrix<T> d_normed = rows_of(d_qkv_, rows) * view(weights, layer.qkv);
    rms_norm_backward(input, gain, row_of(memory.attention_rms, rows), d_normed,
                      rows_of(d_states_, rows), view(part, layer.attention_norm));
  }

  void sum_gradients(std::span<T> gradient) {
    using row = Eigen::Array<T, Eigen::Dynamic, 1>;
    constexpr ba::index_t grain = 8192;
    workers_.parallel_for(ba::ceil_divide(map_.size, grain),
                          [&](ba::index_t piece, ba::index_t /*worker*/) {
                            const ba::index_t begin = piece * grain;
                            const ba::index_t count = std::min(grain, map_.size - begin);
                            Eigen::Map<row> sum(gradient.data() + begin, count);
                            sum.setZero();
                            for (const auto& part : gradients_)
                              sum += Eigen::Map<const row>(part.data() + begin, count);
                          });
  }

  template <class M>
  static auto elements(M&& m) {
    return std::span(m.data(), static_cast<std::size_t>(m.size()));
  }

  model_shape shape_;
  parameter_map map_;
  const ba::eigen_executor& workers_;
  ba::rope rope_;
  matrix<T> states_, source_states_, source_normed_, logits_;
  std::vector<T> source_rms_;
  std::vector<layer_memory> layers_;
  matrix<T> d_states_, d_qkv_, d_attended_;
  std::vector<parameter_vector<T>> gradients_;  ///< one for each run of tokens
};

}  // namespace distillation

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/tile_shape.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>
#include <span>

namespace rag {

namespace ba = blockattn;

/// What one layer of a model hands to attention. Views of any strides, read in place; q and k are
/// rotated for the positions of their tokens.
struct attention_inputs {
  ba::heads_view<const float> q;  ///< (tokens, heads, head_dim)
  ba::heads_view<const float> k;  ///< (tokens, kv_heads, head_dim)
  ba::heads_view<const float> v;  ///< (tokens, kv_heads, head_dim)
  ba::heads_view<float> o;        ///< (tokens, heads, head_dim), to be written
};

/// Memory for the library's kernels that grows to the largest request and is kept between layers.
class scratch_memory {
 public:
  std::span<std::byte> of_size(ba::index_t size) {
    if (static_cast<ba::index_t>(buffer_.bytes().size()) < size) {
      buffer_ = ba::workspace_buffer(size);
    }
    return buffer_.bytes();
  }

 private:
  ba::workspace_buffer buffer_{0};
};

/// Attention of all tokens of a prompt to one another under a mask. One plan serves all layers and
/// heads.
class masked_attention {
 public:
  masked_attention(const ba::attention_mask& mask, ba::index_t head_dim)
      : plan_(ba::make_tile_plan(mask, ba::cpu::tile_shape_for<float>(head_dim))) {}

  template <class Executor>
  void operator()(const attention_inputs& in, const Executor& workers) {
    const auto job =
        ba::cpu::prepare_forward<float>({.q = in.q, .k = in.k, .v = in.v, .o = in.o}, plan_);
    ba::cpu::run_job("masked_attention", job, workers,
                     scratch_.of_size(job.workspace_size(workers.concurrency())));
  }

 private:
  ba::tile_plan plan_;
  scratch_memory scratch_;
};

/// Copies rows of heads between buffers of any layout.
inline void copy_rows(const ba::heads_view<const float>& from, const ba::heads_view<float>& to) {
  for (ba::index_t head = 0; head < from.heads; ++head) {
    for (ba::index_t i = 0; i < from.tokens; ++i) {
      std::copy_n(from.row(i, head), from.head_dim, to.row(i, head));
    }
  }
}

}  // namespace rag

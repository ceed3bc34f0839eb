// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/attend_blocks.cuh>
#include <blockattn/cuda/backward.cuh>
#include <blockattn/cuda/forward.cuh>
#include <blockattn/plan/make_tile_plan.hpp>
#include <span>

/// \file
/// What the ```cuda fragments of the pages take for granted; see declarations.hpp.

namespace docs {

namespace ba = blockattn;

extern const ba::index_t query_heads, head_dim;
extern const ba::attention_mask mask;
extern ba::heads_view<ba::bfloat16> q, k, v, o, d_o, d_q, d_k, d_v;
extern ba::lse_view<float> lse;
extern const std::span<const ba::attend_sequence<ba::bfloat16>> sequences;
extern const ba::rope rope;

extern const std::span<std::byte> device_memory, more_device_memory, workspace;  // of the device
extern const std::span<std::byte> staging, more_staging;                         // of the host
extern const cudaStream_t stream;

}  // namespace docs

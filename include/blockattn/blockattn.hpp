// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

/// \file
/// The whole library in data-flow order, except the adaptors that need something else:
/// core/eigen_executor.hpp (Eigen) and core/openmp_executor.hpp (-fopenmp).

#include <blockattn/core/config.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/core/executor.hpp>
#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/index.hpp>
#include <blockattn/core/philox.hpp>
#include <blockattn/core/range.hpp>
#include <blockattn/core/run_job.hpp>
#include <blockattn/core/storage.hpp>
#include <blockattn/core/workspace.hpp>

#include <blockattn/layout/block_layout.hpp>
#include <blockattn/layout/pack_sequences.hpp>
#include <blockattn/layout/positions.hpp>
#include <blockattn/layout/scatter_rows.hpp>
#include <blockattn/layout/scatter_rows_backward.hpp>
#include <blockattn/layout/sink_tokens.hpp>

#include <blockattn/mask/attention_mask.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/block_visibility_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/custom_mask.hpp>
#include <blockattn/mask/dense_mask.hpp>
#include <blockattn/mask/gather_mask.hpp>
#include <blockattn/mask/mask_from_slices.hpp>
#include <blockattn/mask/packed_documents_mask.hpp>
#include <blockattn/mask/shared_prefix_mask.hpp>
#include <blockattn/mask/slice_overlap.hpp>
#include <blockattn/mask/window_mask.hpp>

#include <blockattn/plan/make_tile_plan.hpp>
#include <blockattn/plan/plan_set.hpp>

#include <blockattn/rope/reposition.hpp>
#include <blockattn/rope/rope.hpp>
#include <blockattn/rope/rotate.hpp>
#include <blockattn/rope/rotate_backward.hpp>
#include <blockattn/softmax/softmax_state.hpp>

#include <blockattn/attention/arguments.hpp>
#include <blockattn/attention/attend_arguments.hpp>
#include <blockattn/attention/backward_arguments.hpp>
#include <blockattn/attention/key_segment.hpp>
#include <blockattn/attention/merge_arguments.hpp>
#include <blockattn/attention/merge_backward_arguments.hpp>

#include <blockattn/reference/backward.hpp>
#include <blockattn/reference/forward.hpp>

#include <blockattn/cpu/attend_blocks.hpp>
#include <blockattn/cpu/backward.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/merge.hpp>
#include <blockattn/cpu/merge_backward.hpp>
#include <blockattn/cpu/tile_shape.hpp>

#include <blockattn/distill/distillation_loss.hpp>
#include <blockattn/distill/label_log_probabilities.hpp>
#include <blockattn/distill/label_log_probability_arguments.hpp>
#include <blockattn/distill/reference_distillation_loss.hpp>
#include <blockattn/distill/sort_top_k.hpp>
#include <blockattn/distill/token_weights.hpp>

#include <blockattn/kv/block_key.hpp>
#include <blockattn/kv/block_storage.hpp>
#include <blockattn/kv/block_store.hpp>
#include <blockattn/kv/cached_block.hpp>

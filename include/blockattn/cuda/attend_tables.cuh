// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/device_rope.cuh>
#include <blockattn/cuda/online_softmax.cuh>
#include <blockattn/cuda/part_merge.cuh>

/// \file
/// What the kernels of attend_blocks read of a call: written by the host, copied to the device.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Keys and values of one key_segment.
struct device_segment {
  const std::uint16_t* k;
  const std::uint16_t* v;
  std::int64_t k_token_stride, k_head_stride;  ///< elements
  std::int64_t v_token_stride, v_head_stride;  ///< elements
  std::int32_t keys;
};

/// Neighbouring segments of a sequence that the same queries meet with the same scores: one axis of
/// keys, of which tiles are cut, so that short pages fill tiles. The tail is a group of its own.
struct key_group {
  double query_shift;
  score_form form;
  std::int32_t first_segment;
  std::int32_t keys;
  std::int32_t last_key;  ///< that query 0 of the sequence sees; query i sees i more
};

/// `last_key` where every query sees all keys.
inline constexpr std::int32_t no_last_key = 1 << 30;

/// What one cta does for one kv head: a run of key tiles of one row tile. Rows are the queries of a
/// sequence times the query heads of a kv head, heads fastest.
struct attend_item {
  std::int32_t first_query;  ///< of the sequence
  std::int32_t rows;         ///< of the sequence
  std::int32_t first_row;    ///< of the tile
  std::int32_t group;
  std::int32_t first_key;  ///< of the group
  std::int32_t segment;    ///< in which it lies ...
  std::int32_t offset;     ///< ... at this key
  std::int32_t tiles;      ///< 0: the rows see no keys
  std::int64_t part_row;   ///< of the tile's first row among the partial rows; -1: no other item
  partition_weight weight;
};

/// A row tile whose keys several items share, a tile's rows of partial rows from one to the next.
struct attend_split {
  std::int32_t first_query;
  std::int32_t first_row;
  std::int32_t rows;  ///< of the tile
  std::int32_t first_run;
  std::int32_t runs;
  std::int64_t part_row;
};

/// Where the tables of a call lie, in bytes from their beginning.
struct table_places {
  std::int64_t segments, groups, items, splits, runs;
};

/// Everything a kernel of attend_blocks is launched with. Short tables travel with the launch: one
/// query over 32K keys took 79 us on an H100 when they were copied before it, 67 when a kernel
/// wrote them, 65 this way (each step held other changes too).
struct attend_parameters {
  static constexpr int most_image_bytes = 12 * 1024;

  const std::uint16_t* q;
  std::int64_t q_token_stride, q_head_stride;
  output_rows out;
  table_places at;
  const std::byte* tables;    ///< in device memory; null when they are in `image`
  row_statistics* part_rows;  ///< (kv_heads, partial rows)
  float* part_values;         ///< (kv_heads, partial rows, columns)
  std::int64_t part_row_count;
  int kv_heads, group_heads;  ///< query heads of a kv head
  int head_dim, value_dim;
  int vectors;  ///< 1 when all rows of q, k and v begin at multiples of 16 bytes
  device_rope turn;
  alignas(16) std::byte image[most_image_bytes];

  __device__ __forceinline__ const device_segment* segments() const {
    return table<device_segment>(at.segments);
  }
  __device__ __forceinline__ const key_group* groups() const { return table<key_group>(at.groups); }
  __device__ __forceinline__ const attend_item* items() const {
    return table<attend_item>(at.items);
  }
  __device__ __forceinline__ const attend_split* splits() const {
    return table<attend_split>(at.splits);
  }
  __device__ __forceinline__ const partition_run* runs() const {
    return table<partition_run>(at.runs);
  }

 private:
  template <class T>
  __device__ __forceinline__ const T* table(std::int64_t place) const {
    return reinterpret_cast<const T*>((tables != nullptr ? tables : image) + place);
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_arguments.hpp>
#include <blockattn/cpu/attend_split.hpp>
#include <blockattn/cpu/in_place.hpp>
#include <blockattn/cpu/online_tile.hpp>
#include <blockattn/rope/rotate_row.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// Which rows a task takes: row r is query r / group of the sequence in head kv_head * group + r %
/// group, so the heads of a GQA group share every key that is read.
template <class Q>
struct segment_tile_arguments {
  heads_view<const Q> q;
  index_range queries;  ///< of the sequence, rows of q
  index_range rows;
  index_t kv_head = 0;
  index_t group = 1;
  index_t value_dim = 0;
  const attend_options* options = nullptr;
};

/// One tile of query rows on its way over key segments read in place. Segments of any length share
/// the columns of a key tile; where their query shifts are not 0, either the queries are turned for
/// them, or their keys while they are packed: whichever are fewer.
template <class Q, class K, class V, class Arch>
class segment_tile {
 public:
  using C = accumulator_t<Q, K, V>;
  using tile = online_tile<C, Arch>;

  /// Rows of a tile: as many as keep scores, queries and output (3 to 4 KiB a row) in half of an L2
  /// of 1 MiB.
  static constexpr index_t most_rows(index_t head_dim) noexcept {
    return head_dim <= 64 ? 192 : 96;
  }

  static index_t bytes(index_t rows, index_t head_dim, index_t value_dim) noexcept {
    workspace_layout layout;
    lay_out(layout, sizes_of(rows, head_dim, value_dim));
    return layout.size();
  }

  segment_tile(const segment_tile_arguments<Q>& arguments,
               index_t tile_rows,
               std::span<std::byte> memory) noexcept
      : arguments_(arguments),
        memory_(memory),
        at_(offsets_of(sizes_of(tile_rows, arguments.q.head_dim, arguments.value_dim))),
        work_(sizes_of(tile_rows, arguments.q.head_dim, arguments.value_dim), memory) {
    work_.begin(arguments.rows.size(), {});
    for (index_t row = 0; row < work_.rows(); ++row) {
      load_row<Arch>(arguments.q.row(query_of(row) + arguments.queries.begin, head_of(row)),
                     head_dim(), 1, base_q(row));
    }
  }

  /// Attends to the keys of one chunk.
  void take_chunk(const segment_list<K, V>& list, const key_chunk& chunk) noexcept {
    index_t first = 0;  // of the segment, counted from the partition's first key
    for (index_t s = chunk.first_segment; s < chunk.end_segment; ++s) {
      const index_t tokens = list[s].k.tokens;
      const index_range wanted{chunk.keys.begin - first, chunk.keys.end - first};
      const index_range keys = intersect(wanted, index_range{0, tokens});
      if (!keys.empty()) place(list, s, keys, turning_keys_is_cheaper(list, s, chunk));
      first += tokens;
    }
    attend_to_tile(list);
  }

  typename tile::finished_row finish(index_t row) const noexcept { return work_.finish(row); }

 private:
  static constexpr index_t tile_keys = round_up(256, tile::width);

  /// Keys of one segment in columns of the key tile that is being filled.
  struct piece_of_tile {
    index_t segment;
    index_t first_key;
    index_range columns;
    double query_shift;  ///< of the queries while they meet this piece
    bool turn_keys;
  };

  static online_tile_sizes sizes_of(index_t rows, index_t head_dim, index_t value_dim) noexcept {
    return {.rows = rows, .columns = tile_keys, .head_dim = head_dim, .value_dim = value_dim};
  }

  struct offsets {
    index_t base_q, keys, values, turned_keys, cosines, sines, pieces;
  };
  static offsets lay_out(workspace_layout& layout, const online_tile_sizes& sizes) noexcept {
    offsets at{};
    layout.take<std::byte>(tile::bytes(sizes));
    at.base_q = layout.take<C>(sizes.rows * sizes.head_dim);
    at.keys = layout.take<C>(tile_keys * sizes.head_dim);
    at.values = layout.take<C>(tile_keys * round_up(sizes.value_dim, tile::width));
    at.turned_keys = layout.take<C>(tile::width * sizes.head_dim);
    at.cosines = layout.take<C>(sizes.head_dim);
    at.sines = layout.take<C>(sizes.head_dim);
    at.pieces = layout.take<piece_of_tile>(tile_keys);
    return at;
  }
  static offsets offsets_of(const online_tile_sizes& sizes) noexcept {
    workspace_layout layout;
    return lay_out(layout, sizes);
  }

  index_t head_dim() const noexcept { return arguments_.q.head_dim; }
  index_t query_of(index_t row) const noexcept {
    return (arguments_.rows.begin + row) / arguments_.group;
  }
  index_t head_of(index_t row) const noexcept {
    return arguments_.kv_head * arguments_.group + (arguments_.rows.begin + row) % arguments_.group;
  }
  C* base_q(index_t row) const noexcept { return piece<C>(memory_, at_.base_q) + row * head_dim(); }
  C* cosines() const noexcept { return piece<C>(memory_, at_.cosines); }
  C* sines() const noexcept { return piece<C>(memory_, at_.sines); }
  std::span<piece_of_tile> pieces() const noexcept {
    return {piece<piece_of_tile>(memory_, at_.pieces), static_cast<std::size_t>(piece_count_)};
  }

  /// One register tile of rows reads keys where they lie; more rows repay packing them.
  bool few_rows() const noexcept { return work_.rows() <= tile::group_rows; }

  /// The queries are, or by the time they meet the next piece will have been, turned by `shift`.
  bool queries_will_have(double shift) const noexcept {
    return piece_count_ > 0 ? pieces().back().query_shift == shift : q_is_set_ && q_shift_ == shift;
  }

  /// Whether turning the keys of segment s is less work than turning the queries for it and for the
  /// segments after it, in the chunk's partition, that have the same shift. Looks no further than
  /// the keys that settle it.
  bool turning_keys_is_cheaper(const segment_list<K, V>& list,
                               index_t s,
                               const key_chunk& chunk) const noexcept {
    const double shift = list[s].query_shift;
    if (shift == 0 || few_rows() || queries_will_have(shift)) return false;
    index_t keys = 0;
    for (index_t other = s; other < chunk.end_segment && keys < work_.rows(); ++other) {
      if (list[other].query_shift != shift) break;
      keys += list[other].k.tokens;
    }
    return keys < work_.rows();
  }

  /// Gives keys of segment s columns, attending to every tile that fills up. A tile has one
  /// score_scale. Queries that turn between two pieces need whole panels for each; few rows have no
  /// panels.
  void place(const segment_list<K, V>& list, index_t s, index_range keys, bool turn_keys) noexcept {
    const double shift = turn_keys ? 0 : list[s].query_shift;
    while (!keys.empty()) {
      index_t column = 0;
      if (piece_count_ > 0) {
        const piece_of_tile& last = pieces().back();
        column = last.query_shift == shift || few_rows() ? last.columns.end
                                                         : round_up(last.columns.end, tile::width);
        if (column >= tile_keys || list[last.segment].score_scale != list[s].score_scale) {
          attend_to_tile(list);
          column = 0;
        }
      }
      const index_t count = std::min(keys.size(), tile_keys - column);
      ++piece_count_;
      pieces().back() = {s, keys.begin, {column, column + count}, shift, turn_keys};
      keys.begin += count;
    }
  }

  /// The columns of a piece that a row sees: all, but of the tail only keys up to the query's own.
  index_range columns_of(const segment_list<K, V>& list,
                         const piece_of_tile& part,
                         index_t row) const noexcept {
    if (!list.is_tail(part.segment)) return part.columns;
    const index_t last_key =
        query_of(row) + list[part.segment].k.tokens - arguments_.queries.size();
    return {part.columns.begin,
            std::min(part.columns.end, part.columns.begin + last_key + 1 - part.first_key)};
  }

  /// The runs of columns that a row sees, neighbours joined. Returns their number.
  index_t runs_of(const segment_list<K, V>& list, index_t row, index_range* runs) const noexcept {
    index_t count = 0;
    for (const piece_of_tile& part : pieces()) {
      const index_range columns = columns_of(list, part, row);
      if (columns.empty()) continue;
      if (count > 0 && runs[count - 1].end == columns.begin) {
        runs[count - 1].end = columns.end;
      } else {
        runs[count++] = columns;
      }
    }
    return count;
  }

  /// Attends to the pieces placed so far and empties the tile.
  void attend_to_tile(const segment_list<K, V>& list) noexcept {
    if (piece_count_ == 0) return;
    const attend_options& options = *arguments_.options;
    const auto transform =
        score_transform<C>::from(resolved_scale(options.scale, head_dim()), options.softcap,
                                 list[pieces().front().segment].score_scale);
    work_.set_transform(transform);
    for (index_t g = 0; g < work_.groups(); ++g) {  // the last row of a group sees most
      const index_t runs = runs_of(list, work_.group(g).end - 1, work_.runs());
      work_.columns_of_group(g) = {0, runs > 0 ? work_.runs()[runs - 1].end : 0};
    }
    if (few_rows()) {
      score_in_place(list, transform.q_factor);
    } else {
      score_packed(list, transform.q_factor);
    }
    work_.softmax([&](index_t row, index_range* runs) { return runs_of(list, row, runs); });
    for (const piece_of_tile& part : pieces()) add_values(list[part.segment].v, part);
    piece_count_ = 0;
  }

  void score_in_place(const segment_list<K, V>& list, long double q_factor) noexcept {
    for (const piece_of_tile& part : pieces()) {
      const heads_view<const K>& k = list[part.segment].k;
      set_queries(part.query_shift, q_factor);
      detail::score_in_place<Arch>(work_.rows(), work_.q_row(0), work_.q_stride(),
                                   k.row(part.first_key, arguments_.kv_head), k.token_stride,
                                   part.columns.size(), head_dim(),
                                   work_.score_row(0) + part.columns.begin, work_.score_stride());
    }
  }

  /// Packs and multiplies the panels that meet the queries under one shift, then those of the next.
  void score_packed(const segment_list<K, V>& list, long double q_factor) noexcept {
    C* const panels = piece<C>(memory_, at_.keys);
    const std::span<piece_of_tile> all = pieces();
    for (std::size_t begin = 0; begin < all.size();) {
      std::size_t end = begin;
      for (; end < all.size() && all[end].query_shift == all[begin].query_shift; ++end) {
        pack_keys(list[all[end].segment], all[end], panels);
      }
      set_queries(all[begin].query_shift, q_factor);
      const index_range columns{all[begin].columns.begin, all[end - 1].columns.end};
      work_.score_packed(panels + columns.begin * head_dim(), columns);
      begin = end;
    }
  }

  /// q <- factor * U(shift) * base, unless that is what q holds.
  void set_queries(double shift, long double factor) noexcept {
    if (q_is_set_ && shift == q_shift_ && factor == q_factor_) return;
    if (shift != 0)
      arguments_.options->rope->template angles<Arch>(shift, cosines(), sines(),
                                                      static_cast<double>(factor));
    for (index_t row = 0; row < work_.rows(); ++row) {
      if (shift != 0) {
        const blockattn::rope& rope = *arguments_.options->rope;
        rotate_row<Arch>(rope, base_q(row), work_.q_row(row), cosines(), sines());
        // The angles carry the factor; what does not rotate takes it here.
        const index_t rotated = rope.rotary_dim();
        load_row<Arch>(base_q(row) + rotated, head_dim() - rotated, factor,
                       work_.q_row(row) + rotated);
      } else {
        load_row<Arch>(base_q(row), head_dim(), factor, work_.q_row(row));
      }
    }
    q_is_set_ = true;
    q_shift_ = shift;
    q_factor_ = factor;
  }

  /// Packs the keys of a piece, turned against the segment's shift if the queries are not.
  void pack_keys(const key_segment<K, V>& segment, const piece_of_tile& part, C* panels) noexcept {
    C* const turned = piece<C>(memory_, at_.turned_keys);
    if (part.turn_keys) {
      arguments_.options->rope->template angles<Arch>(-segment.query_shift, cosines(), sines());
    }
    for (index_t column = part.columns.begin; column < part.columns.end;) {
      const index_t panel = column / tile::width * tile::width;
      const index_range columns{column - panel, std::min(part.columns.end - panel, tile::width)};
      const K* const rows =
          segment.k.row(part.first_key + column - part.columns.begin, arguments_.kv_head);
      if (part.turn_keys) {
        for (index_t i = 0; i < columns.size(); ++i) {
          rotate_row<Arch>(*arguments_.options->rope, rows + i * segment.k.token_stride,
                           turned + i * head_dim(), cosines(), sines());
        }
        pack_key_columns<C, Arch>(turned, head_dim(), columns, head_dim(),
                                  panels + panel * head_dim());
      } else {
        pack_key_columns<C, Arch>(rows, segment.k.token_stride, columns, head_dim(),
                                  panels + panel * head_dim());
      }
      column += columns.size();
    }
  }

  void add_values(const heads_view<const V>& v, const piece_of_tile& part) noexcept {
    if constexpr (std::is_same_v<V, C>) {
      if (v.head_dim % tile::width == 0) {
        work_.add_values(v.row(part.first_key, arguments_.kv_head), tile::width, v.token_stride,
                         part.columns);
        return;
      }
    }
    C* const panels = piece<C>(memory_, at_.values);
    pack_values<C, Arch>(v, arguments_.kv_head,
                         {part.first_key, part.first_key + part.columns.size()}, part.first_key,
                         tile_keys, panels);
    work_.add_values(panels, tile_keys * tile::width, tile::width, part.columns);
  }

  segment_tile_arguments<Q> arguments_;
  std::span<std::byte> memory_;
  offsets at_;
  tile work_;
  index_t piece_count_ = 0;
  bool q_is_set_ = false;
  double q_shift_ = 0;
  long double q_factor_ = 1;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail

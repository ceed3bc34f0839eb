// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index.hpp>
#include <blockattn/cuda/cta_reduction.cuh>
#include <blockattn/cuda/stored_value.cuh>
#include <cstdint>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Tokens for which the widest of the types takes 16 bytes.
template <class... Types>
inline constexpr int tokens_of_16_bytes = 16 / std::max({2, static_cast<int>(sizeof(Types))...});

/// How the rows of teacher, student and gradient are cut into pieces: Width neighbouring tokens of
/// the vocabulary for each thread of a cta; the pieces of all threads are a tile. Types are
/// stored_type's, or absent_values.
template <class Teacher,
          class Student,
          class Gradient,
          int Width = tokens_of_16_bytes<Teacher, Student, Gradient>>
struct row_pieces {
  static constexpr int width = Width;
  static constexpr int tile = width * token_threads;
  using teacher_type = Teacher;
  using student_type = Student;
  using gradient_type = Gradient;
  using teacher_piece = stored_piece<Teacher, width>;
  using student_piece = stored_piece<Student, width>;
  using gradient_piece = stored_piece<Gradient, width>;
  /// Bytes of a tile in shared memory.
  static constexpr int tile_bytes = token_threads * (teacher_piece::bytes + student_piece::bytes);
};

/// Walks one cta over one row of teacher and student, several times. A thread meets the same tokens
/// in every pass, so that nothing is exchanged: not what it keeps in shared memory, and not a
/// gradient that it writes over logits it has read.
///
/// Threads take neighbouring tokens by vector accesses when the rows of teacher and student begin
/// at multiples of those, else every token_threads'th token, which keeps single accesses of a warp
/// together. The gradient has no say in it: whether and where it is written, sums have the same
/// bits.
template <class Pieces>
class row_reader {
 public:
  static constexpr int width = Pieces::width;
  static constexpr unsigned all_tokens = (1U << width) - 1;  ///< of a piece

  /// What tells how many tokens a piece has.
  struct all_there {
    static __device__ __forceinline__ bool has(int /*i*/) { return true; }
  };
  struct some_there {
    int count;
    __device__ __forceinline__ bool has(int i) const { return i < count; }
  };

  /// Logits of up to `width` tokens.
  template <class Count>
  struct piece : Count {
    static constexpr int width = Pieces::width;
    typename Pieces::teacher_piece teachers;
    typename Pieces::student_piece students;
    int first, step;

    __device__ __forceinline__ float teacher(int i) const { return teachers.at(i); }
    __device__ __forceinline__ float student(int i) const { return students.at(i); }
    __device__ __forceinline__ int token(int i) const { return first + i * step; }
  };

  /// `kept` tiles, the first ones, find room in `memory`, which is shared.
  __device__ __forceinline__ row_reader(const typename Pieces::teacher_type* teacher,
                                        const typename Pieces::student_type* student,
                                        typename Pieces::gradient_type* gradient,
                                        int vocabulary,
                                        int kept,
                                        unsigned char* memory)
      : teacher_(teacher),
        student_(student),
        gradient_(gradient),
        vocabulary_(vocabulary),
        kept_(kept),
        memory_(memory + threadIdx.x * student_piece::bytes) {
    const auto misaligned = [](const void* row, int bytes) {
      return bytes > 0 && reinterpret_cast<std::uintptr_t>(row) % static_cast<unsigned>(bytes) != 0;
    };
    const bool scattered =
        misaligned(teacher, teacher_piece::bytes) || misaligned(student, student_piece::bytes);
    writes_pieces_ = !scattered && !misaligned(gradient, Pieces::gradient_piece::bytes);
    step_ = scattered ? token_threads : 1;
    first_ = static_cast<int>(threadIdx.x) * (scattered ? 1 : width);
  }

  /// The first pass: calls body(piece) for each of this thread's pieces and keeps what has room.
  template <class Body>
  __device__ __forceinline__ void read(const Body& body) const {
    walk(
        0, 1,
        [&](int tile, const auto& piece) {
          if (tile < kept_) {
            piece.teachers.store(kept_teacher(tile));
            piece.students.store(kept_student(tile));
          }
          body(piece);
        },
        0);
  }

  /// A later pass, backwards: what was read last is still in cache.
  template <class Body>
  __device__ __forceinline__ void read_again(const Body& body) const {
    walk(
        tiles() - 1, -1, [&](int, const auto& piece) { body(piece); }, kept_);
  }

  /// Writes gradients of a piece; bit i of `wanted` says whether token i is written.
  template <class Piece>
  __device__ __forceinline__ void write(const Piece& where,
                                        const float (&values)[width],
                                        unsigned wanted) const {
    if (writes_pieces_ && where.has(width - 1) && wanted == all_tokens) {
      Pieces::gradient_piece::rounded(values).stream(gradient_ + where.first);
      return;
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (where.has(i) && (wanted >> i & 1U) != 0)
        store_value(gradient_ + where.token(i), values[i]);
    }
  }

  /// Writes zeros to the whole row.
  __device__ __forceinline__ void write_zeros() const {
    for (int tile = 0; tile < tiles(); ++tile) {
      const piece<some_there> place{{count_of(tile)}, {}, {}, first_of(tile), step_};
      write(place, {}, all_tokens);
    }
  }

 private:
  using teacher_piece = typename Pieces::teacher_piece;
  using student_piece = typename Pieces::student_piece;

  __device__ __forceinline__ int tiles() const {
    return (vocabulary_ + Pieces::tile - 1) / Pieces::tile;
  }
  __device__ __forceinline__ int first_of(int tile) const { return tile * Pieces::tile + first_; }
  __device__ __forceinline__ int count_of(int tile) const {
    const int left = vocabulary_ - first_of(tile);
    return step_ == 1 ? min(max(left, 0), width)
                      : min((max(left, 0) + token_threads - 1) / token_threads, width);
  }
  __device__ __forceinline__ unsigned char* kept_student(int tile) const {
    return memory_ + tile * Pieces::tile_bytes;
  }
  __device__ __forceinline__ unsigned char* kept_teacher(int tile) const {
    constexpr int more = teacher_piece::bytes - student_piece::bytes;
    return kept_student(tile) + token_threads * student_piece::bytes +
           static_cast<int>(threadIdx.x) * more;
  }

  __device__ __forceinline__ piece<some_there> load(int tile, int kept) const {
    piece<some_there> result{{count_of(tile)}, {}, {}, first_of(tile), step_};
    if (tile < kept) {
      result.teachers.load(kept_teacher(tile));
      result.students.load(kept_student(tile));
    } else if (step_ == 1 && result.count == width) {
      result.teachers.load(teacher_ + result.first);
      result.students.load(student_ + result.first);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (i >= result.count) continue;
        result.teachers.load_one(i, teacher_ + result.token(i));
        result.students.load_one(i, student_ + result.token(i));
      }
    }
    return result;
  }

  /// Calls body(tile, piece) for the tiles from `tile` on; the next piece is under way meanwhile.
  template <class Body>
  __device__ __forceinline__ void walk(int tile, int direction, const Body& body, int kept) const {
    const int end = direction > 0 ? tiles() : -1;
    piece<some_there> next = load(tile, kept);
    while (tile != end) {
      const piece<some_there> current = next;
      const int following = tile + direction;
      if (following != end) next = load(following, kept);
      if (current.count == width) {
        body(tile, piece<all_there>{{}, current.teachers, current.students, current.first, step_});
      } else if (current.count > 0) {
        body(tile, current);
      }
      tile = following;
    }
  }

  const typename Pieces::teacher_type* teacher_;
  const typename Pieces::student_type* student_;
  typename Pieces::gradient_type* gradient_;
  int vocabulary_, kept_;
  unsigned char* memory_;
  int first_, step_;
  bool writes_pieces_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail

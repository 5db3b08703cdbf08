// The strongest directions of a matrix: randomized subspace iteration (Halko, Martinsson, Tropp
// 2011, algorithm 4.4) from rows of the matrix itself, two passes for the subspace and one for the
// coefficients. For the encoder alone: no decoded value depends on how factors were found.
#pragma once

#include <vector>

#include "codec.h"
#include "core/low_rank.h"
#include "cpu/kernels.h"

namespace gct {

// x is close to left * transpose(right) with the columns k < width.
struct Factorization {
  int64_t rows = 0, columns = 0;
  std::vector<float> right;    // columns x kLowRankWidth, columns of length 1 or 0
  std::vector<float> left;     // rows x kLowRankWidth
  std::vector<double> energy;  // sum of squares that each k holds, falling

  size_t capacity_bytes() const { return 4 * (right.capacity() + left.capacity()); }
};

// A run as a matrix of whole rows, cut anywhere: what its first and last row lack counts as zero.
class RowReader {
 public:
  RowReader(const Run& run, DType dtype)
      : run_(run), dtype_(dtype), rows_(low_rank_rows(run.numel, run.columns, run.first_column)) {}

  int64_t rows() const { return rows_; }
  int64_t columns() const { return run_.columns; }
  // Rows [begin, begin + count) as float32, `columns` apart; in place where they are, else in
  // *scratch.
  const float* read(int64_t begin, int64_t count, std::vector<float>* scratch) const;

 private:
  const Run& run_;
  DType dtype_;
  int64_t rows_;
};

// False where there is nothing to find or numbers leave float32's range. block_means: of the run's
// blocks.
bool factorize(const Run& run, DType dtype, const float* block_means, ThreadPool* pool,
               Factorization* result);

}  // namespace gct

#include "cpu/factorize.h"

#include <algorithm>
#include <cmath>

#include "cpu/analyze.h"
#include "cpu/thread_pool.h"

namespace gct {
namespace {

constexpr int kWidth = kLowRankWidth;
constexpr int64_t kPanelRows = 32;
// Sums over rows are taken band by band, so that they don't depend on the number of threads.
constexpr int64_t kMaxBands = 8;
constexpr int64_t kBandRows = 64;
constexpr int kMaxSweeps = 12;  // of Jacobi's method, which needs 5 or so for 16 x 16

int64_t num_bands(int64_t rows) { return std::clamp(rows / kBandRows, int64_t{1}, kMaxBands); }

// f(band, x, row, count) for panels of rows, bands on the pool's threads.
template <typename F>
void for_each_panel(const RowReader& reader, ThreadPool* pool, F f) {
  const int64_t bands = num_bands(reader.rows());
  const auto body = [&](int64_t band, int) {
    std::vector<float> scratch;
    const int64_t end = reader.rows() * (band + 1) / bands;
    for (int64_t row = reader.rows() * band / bands; row < end; row += kPanelRows) {
      const int64_t count = std::min(kPanelRows, end - row);
      f(band, reader.read(row, count, &scratch), row, count);
    }
  };
  parallel_for(pool, bands, body);
}

// One strong row out of each of kWidth stretches of the matrix: a start that already leans towards
// the strong directions, and that embeddings with few rows in use don't miss.
// Blocks tell rows apart only where they aren't longer than these, so the rows of the best block
// are looked at.
std::vector<int64_t> strong_rows(const Run& run, const RowReader& reader,
                                 const float* block_means) {
  std::vector<int64_t> chosen;
  std::vector<float> scratch;
  const int64_t rows = reader.rows(), last = num_blocks(run.numel) - 1;
  const auto block_of = [&](int64_t row) {
    const int64_t middle = row * run.columns + run.columns / 2 - run.first_column;
    return std::clamp(middle / kBlock, int64_t{0}, last);
  };
  const auto size_of = [&](int64_t row) {
    const float* x = reader.read(row, 1, &scratch);
    double sum = 0;
    for (int64_t j = 0; j < run.columns; ++j) sum += std::fabs(static_cast<double>(x[j]));
    return sum;
  };
  for (int64_t k = 0; k < std::min<int64_t>(kWidth, rows); ++k) {
    const int64_t begin = rows * k / kWidth, end = std::max(begin + 1, rows * (k + 1) / kWidth);
    int64_t best = begin;
    for (int64_t row = begin; row < end; ++row) {
      if (block_means[block_of(row)] > block_means[block_of(best)]) best = row;
    }
    double best_size = -1;
    for (int64_t row = best, block = block_of(best); row < end && block_of(row) == block; ++row) {
      const double size = size_of(row);
      if (size <= best_size) continue;
      best_size = size;
      best = row;
    }
    chosen.push_back(best);
  }
  return chosen;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t j = 0; j < a.size(); ++j) sum += a[j] * b[j];
  return sum;
}

// Makes the columns of a narrow matrix orthonormal, in double; those that depend on earlier ones
// become zero.
void orthonormalize(std::vector<float>* matrix) {
  const size_t n = matrix->size() / kWidth;
  std::vector<std::vector<double>> columns(kWidth, std::vector<double>(n));
  for (size_t j = 0; j < n; ++j) {
    for (size_t k = 0; k < kWidth; ++k)
      columns[k][j] = static_cast<double>((*matrix)[j * kWidth + k]);
  }
  for (size_t k = 0; k < kWidth; ++k) {
    std::vector<double>& column = columns[k];
    const double before = std::sqrt(dot(column, column));
    for (int pass = 0; pass < 2; ++pass) {  // once loses digits (Giraud et al. 2005)
      for (size_t p = 0; p < k; ++p) {
        const double share = dot(columns[p], column);
        for (size_t j = 0; j < n; ++j) column[j] -= share * columns[p][j];
      }
    }
    const double length = std::sqrt(dot(column, column));
    const bool independent = std::isfinite(length) && length > 1e-5 * before && length > 0;
    for (double& value : column) value = independent ? value / length : 0.0;
  }
  for (size_t j = 0; j < n; ++j) {
    for (size_t k = 0; k < kWidth; ++k)
      (*matrix)[j * kWidth + k] = static_cast<float>(columns[k][j]);
  }
}

// transpose(matrix) * matrix.
std::vector<double> gram(const std::vector<float>& matrix) {
  std::vector<double> sums(kWidth * kWidth, 0.0);
  for (size_t at = 0; at < matrix.size(); at += kWidth) {
    for (size_t k = 0; k < kWidth; ++k) {
      const double value = static_cast<double>(matrix[at + k]);
      for (size_t p = 0; p < kWidth; ++p)
        sums[k * kWidth + p] += value * static_cast<double>(matrix[at + p]);
    }
  }
  return sums;
}

// Eigenvectors of a symmetric matrix by Jacobi's rotations (Golub and Van Loan, 8.5): vectors in
// the columns of *vectors; the matrix becomes diagonal.
void diagonalize(std::vector<double>* matrix, std::vector<double>* vectors) {
  std::vector<double>& a = *matrix;
  std::vector<double>& v = *vectors;
  v.assign(kWidth * kWidth, 0.0);
  for (size_t i = 0; i < kWidth; ++i) v[i * kWidth + i] = 1.0;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    double off = 0, diagonal = 0;
    for (size_t p = 0; p < kWidth; ++p) {
      diagonal += a[p * kWidth + p] * a[p * kWidth + p];
      for (size_t q = p + 1; q < kWidth; ++q) off += a[p * kWidth + q] * a[p * kWidth + q];
    }
    if (off <= 1e-20 * diagonal) return;
    for (size_t p = 0; p < kWidth; ++p) {
      for (size_t q = p + 1; q < kWidth; ++q) {
        const double pq = a[p * kWidth + q];
        if (pq == 0) continue;
        const double tau = (a[q * kWidth + q] - a[p * kWidth + p]) / (2 * pq);
        const double t = (tau >= 0 ? 1 : -1) / (std::fabs(tau) + std::sqrt(1 + tau * tau));
        const double c = 1 / std::sqrt(1 + t * t), s = t * c;
        for (size_t i = 0; i < kWidth; ++i) {
          const double ip = a[i * kWidth + p], iq = a[i * kWidth + q];
          a[i * kWidth + p] = c * ip - s * iq;
          a[i * kWidth + q] = s * ip + c * iq;
        }
        for (size_t i = 0; i < kWidth; ++i) {
          const double pi = a[p * kWidth + i], qi = a[q * kWidth + i];
          a[p * kWidth + i] = c * pi - s * qi;
          a[q * kWidth + i] = s * pi + c * qi;
          const double vp = v[i * kWidth + p], vq = v[i * kWidth + q];
          v[i * kWidth + p] = c * vp - s * vq;
          v[i * kWidth + q] = s * vp + c * vq;
        }
      }
    }
  }
}

// matrix * rotation, row by row, with the rotation's columns in `order`.
void rotate(const std::vector<double>& rotation, const std::vector<size_t>& order,
            std::vector<float>* matrix) {
  double row[kWidth];
  for (size_t at = 0; at < matrix->size(); at += kWidth) {
    for (size_t k = 0; k < kWidth; ++k) row[k] = static_cast<double>((*matrix)[at + k]);
    for (size_t k = 0; k < kWidth; ++k) {
      double sum = 0;
      for (size_t p = 0; p < kWidth; ++p) sum += row[p] * rotation[p * kWidth + order[k]];
      (*matrix)[at + k] = static_cast<float>(sum);
    }
  }
}

// Turns both factors to the principal axes, strongest first; the product stays the same.
void turn_to_axes(Factorization* f) {
  std::vector<double> moments = gram(f->left), rotation;
  diagonalize(&moments, &rotation);
  std::vector<size_t> order(kWidth);
  for (size_t k = 0; k < kWidth; ++k) order[k] = k;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return moments[a * kWidth + a] > moments[b * kWidth + b]; });
  rotate(rotation, order, &f->left);
  rotate(rotation, order, &f->right);
  f->energy.clear();
  for (const size_t k : order) f->energy.push_back(std::max(moments[k * kWidth + k], 0.0));
}

// right = transpose(x) y, in bands.
void back_project(const RowReader& reader, const std::vector<float>& y, ThreadPool* pool,
                  std::vector<float>* right) {
  const size_t size = static_cast<size_t>(reader.columns()) * kWidth;
  std::vector<float> bands(static_cast<size_t>(num_bands(reader.rows())) * size, 0.0f);
  for_each_panel(reader, pool, [&](int64_t band, const float* x, int64_t row, int64_t count) {
    kernels().add_outer(x, reader.columns(), count, reader.columns(), &y[row * kWidth],
                        &bands[static_cast<size_t>(band) * size]);
  });
  right->assign(bands.begin(), bands.begin() + static_cast<std::ptrdiff_t>(size));
  for (size_t at = size; at < bands.size(); ++at) (*right)[at % size] += bands[at];
}

void project_all(const RowReader& reader, const std::vector<float>& right, ThreadPool* pool,
                 std::vector<float>* left) {
  left->resize(static_cast<size_t>(reader.rows()) * kWidth);
  for_each_panel(reader, pool, [&](int64_t, const float* x, int64_t row, int64_t count) {
    kernels().project(x, reader.columns(), count, reader.columns(), right.data(),
                      &(*left)[static_cast<size_t>(row) * kWidth]);
  });
}

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace

const float* RowReader::read(int64_t begin, int64_t count, std::vector<float>* scratch) const {
  const int64_t columns = run_.columns;
  const int64_t from = begin * columns - run_.first_column, to = from + count * columns;
  if (dtype_ == DType::kFloat32 && from >= 0 && to <= run_.numel)
    return static_cast<const float*>(run_.data) + from;
  scratch->assign(static_cast<size_t>(count * columns), 0.0f);
  float converted[kBlock];
  for (int64_t at = std::max<int64_t>(from, 0); at < std::min(to, run_.numel); at += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, std::min(to, run_.numel) - at));
    const float* x = load_floats(run_, dtype_, at, n, converted);
    std::copy(x, x + n, scratch->begin() + (at - from));
  }
  return scratch->data();
}

bool factorize(const Run& run, DType dtype, const float* block_means, ThreadPool* pool,
               Factorization* result) {
  const RowReader reader(run, dtype);
  result->rows = reader.rows();
  result->columns = reader.columns();
  result->right.assign(static_cast<size_t>(reader.columns()) * kWidth, 0.0f);
  std::vector<float> scratch;
  const std::vector<int64_t> start = strong_rows(run, reader, block_means);
  for (size_t k = 0; k < start.size(); ++k) {
    const float* x = reader.read(start[k], 1, &scratch);
    for (int64_t j = 0; j < reader.columns(); ++j)
      result->right[static_cast<size_t>(j) * kWidth + k] = x[j];
  }
  orthonormalize(&result->right);
  project_all(reader, result->right, pool, &result->left);
  orthonormalize(&result->left);
  back_project(reader, result->left, pool, &result->right);
  orthonormalize(&result->right);
  project_all(reader, result->right, pool, &result->left);
  if (!all_finite(result->left)) return false;
  turn_to_axes(result);
  return std::isfinite(result->energy[0]) && result->energy[0] > 0 && all_finite(result->left);
}

}  // namespace gct

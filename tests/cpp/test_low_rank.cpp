// Low-rank parts: the narrow products of all implementations, the factors that the encoder finds,
// and segments with such parts as a whole.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "codec.h"
#include "core/wire.h"
#include "cpu/factorize.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "inputs.h"

namespace gct {
namespace {

using test::describe;
using test::gaussian;
using test::Input;
using test::make_matrix;
using test::params;
using test::Random;
using test::Values;

constexpr int64_t kWidth = kLowRankWidth;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

size_t size(int64_t n) { return static_cast<size_t>(n); }

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

// ---- kernels

// Over many octaves, so that another order of a sum has other bits.
Floats random_floats(int64_t n, Random* random) {
  Floats x(size(n));
  for (float& v : x) v = static_cast<float>(gaussian(random) * std::exp2(10 * random->unit()));
  return x;
}

// A sum in the order of its terms, each operation rounded: volatile forbids to fuse them.
struct OrderedSum {
  volatile float sum;
  explicit OrderedSum(float start = 0) : sum(start) {}
  void add(float a, float b) {
    volatile float product = a * b;
    sum = sum + product;
  }
};

// All arrays end where the kernel may read last, which the sanitizers check.
void test_project_and_add_outer(const Kernels& k, int64_t rows, int64_t columns, int64_t stride,
                                Random* random) {
  const Floats x = random_floats((rows - 1) * stride + columns, random);
  const Floats v = random_floats(columns * kWidth, random),
               y = random_floats(rows * kWidth, random);
  const Floats z = random_floats(columns * kWidth, random);
  Floats projected(size(rows * kWidth), 42.0f), expected(size(rows * kWidth)), sums = z, outer = z;
  for (int64_t q = 0; q < rows; ++q) {
    for (int64_t i = 0; i < kWidth; ++i) {
      OrderedSum sum;
      for (int64_t j = 0; j < columns; ++j)
        sum.add(x[size(q * stride + j)], v[size(j * kWidth + i)]);
      expected[size(q * kWidth + i)] = sum.sum;
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < kWidth; ++i) {
      OrderedSum sum(z[size(j * kWidth + i)]);
      for (int64_t q = 0; q < rows; ++q) sum.add(x[size(q * stride + j)], y[size(q * kWidth + i)]);
      outer[size(j * kWidth + i)] = sum.sum;
    }
  }
  k.project(x.data(), stride, rows, columns, v.data(), projected.data());
  CHECK_IN(k.name, same_bits(projected, expected), rows, columns, stride);
  k.add_outer(x.data(), stride, rows, columns, y.data(), sums.data());
  CHECK_IN(k.name, same_bits(sums, outer), rows, columns, stride);
}

void test_row_product(const Kernels& k, int rank, int64_t n, int64_t stride, Random* random) {
  const Floats a = random_floats(rank, random), c = random_floats((rank - 1) * stride + n, random);
  Floats out(size(n), 42.0f), expected(size(n));
  for (int64_t j = 0; j < n; ++j) {
    OrderedSum sum;
    for (int r = 0; r < rank; ++r) sum.add(a[size(r)], c[size(r * stride + j)]);
    expected[size(j)] = sum.sum;
  }
  k.row_product(a.data(), c.data(), stride, rank, n, out.data());
  CHECK_IN(k.name, same_bits(out, expected), rank, n, stride);
}

void test_kernels() {
  Random random(1);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  for (int i = 0; i < count; ++i) {
    for (int64_t columns : {1, 7, 63, 64, 65, 300}) {
      for (int64_t stride : {columns, columns + 3}) {
        for (int64_t rows = 1; rows <= 17; ++rows)
          test_project_and_add_outer(*all[i], rows, columns, stride, &random);
        for (int rank = 1; rank <= 16; ++rank)
          test_row_product(*all[i], rank, columns, stride, &random);
        test_row_product(*all[i], static_cast<int>(kMaxRank), columns, stride, &random);
      }
    }
  }
}

// ---- factors

// rows x columns values, row by row.
struct Matrix {
  int64_t rows, columns;
  Floats x;

  double energy() const {
    double sum = 0;
    for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
    return sum;
  }
  Run run(int64_t begin, int64_t end) const {
    Run run;
    run.data = x.data() + begin;
    run.numel = end - begin;
    run.columns = columns;
    run.first_column = begin % columns;
    return run;
  }
};

// n x count, columns of length 1, orthogonal to each other.
std::vector<Doubles> orthonormal(int64_t n, size_t count, Random* random) {
  std::vector<Doubles> vectors;
  while (vectors.size() < count) {
    Doubles v(size(n));
    for (double& value : v) value = gaussian(random);
    for (const Doubles& u : vectors) {
      double share = 0;
      for (size_t i = 0; i < v.size(); ++i) share += u[i] * v[i];
      for (size_t i = 0; i < v.size(); ++i) v[i] -= share * u[i];
    }
    double square = 0;
    for (const double value : v) square += value * value;
    for (double& value : v) value /= std::sqrt(square);
    vectors.push_back(v);
  }
  return vectors;
}

// A matrix with these singular values, plus noise.
Matrix make_low_rank(int64_t rows, int64_t columns, const Doubles& singular, double noise,
                     uint64_t seed) {
  Random random(seed);
  const auto u = orthonormal(rows, singular.size(), &random);
  const auto v = orthonormal(columns, singular.size(), &random);
  Matrix matrix{rows, columns, {}};
  for (size_t i = 0; i < size(rows); ++i) {
    for (size_t j = 0; j < size(columns); ++j) {
      double sum = noise * gaussian(&random);
      for (size_t k = 0; k < singular.size(); ++k) sum += singular[k] * u[k][i] * v[k][j];
      matrix.x.push_back(static_cast<float>(sum));
    }
  }
  return matrix;
}

bool factorize_run(const Run& run, Factorization* f, ThreadPool* pool = nullptr) {
  const float* x = static_cast<const float*>(run.data);
  Floats means;
  for (int64_t at = 0; at < run.numel; at += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, run.numel - at));
    means.push_back(scalar_kernels()->moments(x + at, n).sum_abs / static_cast<float>(n));
  }
  return factorize(run, DType::kFloat32, means.data(), pool, f);
}

double product(const Factorization& f, int64_t row, int64_t column) {
  double sum = 0;
  for (int64_t k = 0; k < kWidth; ++k)
    sum += static_cast<double>(f.left[size(row * kWidth + k)]) *
           static_cast<double>(f.right[size(column * kWidth + k)]);
  return sum;
}

// Sum of squares over the run of what the product leaves.
double rest(const Run& run, const Factorization& f) {
  const float* x = static_cast<const float*>(run.data);
  double sum = 0;
  for (int64_t e = 0; e < run.numel; ++e) {
    const int64_t at = run.first_column + e;
    const double left = static_cast<double>(x[e]) - product(f, at / f.columns, at % f.columns);
    sum += left * left;
  }
  return sum;
}

// Columns of `right` have length 1 or 0 and are orthogonal, those of `left` hold the energies.
void check_axes(const Factorization& f) {
  for (size_t k = 0; k < size(kWidth); ++k) {
    for (size_t p = 0; p <= k; ++p) {
      double right = 0, left = 0;
      for (size_t j = 0; j < size(f.columns); ++j)
        right += static_cast<double>(f.right[j * size(kWidth) + k]) *
                 static_cast<double>(f.right[j * size(kWidth) + p]);
      for (size_t i = 0; i < size(f.rows); ++i)
        left += static_cast<double>(f.left[i * size(kWidth) + k]) *
                static_cast<double>(f.left[i * size(kWidth) + p]);
      const double length = k == p && right > 0.5 ? 1 : 0, energy = k == p ? f.energy[k] : 0;
      CHECK(std::fabs(right - length) < 1e-5, k, p, right);  // float32
      CHECK(std::fabs(left - energy) < 1e-5 * f.energy[0], k, p, left, energy);
    }
    CHECK(k == 0 || f.energy[k] <= f.energy[k - 1], k);
  }
}

// Noise moves a singular value by at most its own largest one (Weyl), which for a normal
// distribution is sqrt(rows) + sqrt(columns) standard deviations and seldom a tenth more; float32
// adds 1e-5 of the largest value.
void test_energies() {
  const Doubles singular = {9, 6, 5, 2};
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{64, 64},
                                      {300, 40},
                                      {33, 500},
                                      {17, 17},
                                      {1100, 70},
                                      {8, 1000}}) {
    for (double noise : {0.0, 1e-4, 1e-2}) {
      const Matrix matrix = make_low_rank(rows, columns, singular, noise, 2);
      const Run run = matrix.run(0, rows * columns);
      Factorization f;
      CHECK(factorize_run(run, &f), rows, columns);
      CHECK(f.rows == rows && f.columns == columns);
      CHECK(f.energy.size() == size(kWidth));
      check_axes(f);
      const double sides = std::sqrt(double(rows)) + std::sqrt(double(columns));
      const double most = 1.1 * noise * sides + 1e-5 * singular[0];
      for (size_t k = 0; k < size(kWidth); ++k) {
        const double expected = k < singular.size() ? singular[k] : 0;
        CHECK(std::fabs(std::sqrt(f.energy[k]) - expected) <= most, rows, columns, noise, k,
              std::sqrt(f.energy[k]), expected);
      }
      // What is left is noise, and less of it than there was. 1e-6: float32, an element.
      const double all = noise * noise * double(rows * columns);
      CHECK(rest(run, f) <= 1.05 * all + 1e-12 * matrix.energy(), rows, columns, rest(run, f), all);
    }
  }
}

void test_threads_find_the_same_factors() {
  ThreadPool three(3);
  const Matrix matrix = make_low_rank(1100, 70, {9, 6, 5, 2}, 0.1, 3);
  for (const std::string& implementation : implementations()) {
    CHECK(set_implementation(implementation));
    Factorization first, threaded, scalar;
    CHECK(factorize_run(matrix.run(30, 76900), &first));
    CHECK(factorize_run(matrix.run(30, 76900), &threaded, &three));
    CHECK(set_implementation("scalar"));
    CHECK(factorize_run(matrix.run(30, 76900), &scalar));
    for (const Factorization* f : {&threaded, &scalar})
      CHECK_IN(implementation, same_bits(first.left, f->left) && same_bits(first.right, f->right) &&
                                   first.energy == f->energy);
  }
}

void test_no_factors() {
  Matrix matrix{64, 70, Floats(64 * 70, 0.0f)};
  Factorization f;
  CHECK(!factorize_run(matrix.run(0, 64 * 70), &f));
  // Sums over a row leave float32's range.
  std::fill(matrix.x.begin(), matrix.x.end(), 3e38f);
  CHECK(!factorize_run(matrix.run(0, 64 * 70), &f));
}

// As in the gradient of an embedding with one token in use.
void test_one_nonzero_row() {
  Random random(4);
  for (int64_t columns : {20, 70, 300}) {
    for (int64_t rows : {16, 40, 333}) {
      for (int64_t row : {int64_t{0}, rows / 3, rows - 1}) {
        Matrix matrix{rows, columns, Floats(size(rows * columns), 0.0f)};
        for (int64_t j = 0; j < columns; ++j)
          matrix.x[size(row * columns + j)] = static_cast<float>(gaussian(&random));
        const Run run = matrix.run(0, rows * columns);
        Factorization f;
        const bool found = factorize_run(run, &f);
        CHECK(found, rows, columns, row);
        if (!found) continue;
        CHECK(std::fabs(f.energy[0] / matrix.energy() - 1) < 1e-5, rows, columns, row);
        CHECK(f.energy[1] < 1e-10 * f.energy[0], rows, columns, row, f.energy[1]);
        CHECK(rest(run, f) < 1e-10 * matrix.energy(), rows, columns, row);
      }
    }
  }
}

// Powers of two change no digit, but products of the smallest numbers with small ones are
// subnormal.
void test_scales() {
  const Matrix matrix = make_low_rank(90, 65, {9, 6, 5, 2}, 0.01, 5);
  Factorization plain;
  CHECK(factorize_run(matrix.run(0, 90 * 65), &plain));
  for (int octaves : {-100, 100}) {
    Matrix scaled = matrix;
    for (float& v : scaled.x) v = std::ldexp(v, octaves);
    Factorization f;
    CHECK(factorize_run(scaled.run(0, 90 * 65), &f), octaves);
    for (size_t k = 0; k < size(kWidth); ++k) {
      const double ratio = std::ldexp(f.energy[k], -2 * octaves) / plain.energy[k];
      CHECK(std::fabs(ratio - 1) < 1e-4, octaves, k, ratio);
    }
  }
}

// Zeros stand for what is cut off the first and the last row, so these two are of no use to the
// others' product, which is exact: all that may be left is what is in them. A wrong first column
// would leave most of the matrix. 1e-10: float32.
void test_cut_matrices() {
  const Matrix matrix = make_low_rank(80, 75, {9, 6, 5}, 0, 6);
  for (int64_t begin : {0, 1, 74, 75, 700, 1234}) {
    for (int64_t end : {6000, 5999, 5926, 5925, 5555}) {
      const Run run = matrix.run(begin, end);
      Factorization f;
      CHECK(factorize_run(run, &f), begin, end);
      CHECK(f.rows == div_up(end, 75) - begin / 75, f.rows, begin, end);
      double cut = 0;
      for (int64_t e = begin; e < end; ++e) {
        const double x = static_cast<double>(matrix.x[size(e)]);
        if (e < round_up(begin, 75) || e >= end / 75 * 75) cut += x * x;
      }
      CHECK(rest(run, f) < 1.1 * cut + 1e-10 * matrix.energy(), begin, end, rest(run, f), cut);
      CHECK(cut < 0.1 * matrix.energy(), cut);
    }
  }
}

void test_rows_are_read_as_they_are() {
  constexpr int64_t kColumns = 30;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
    const Values values = make_matrix(dtype, 20 * kColumns, kColumns, 4, 7);
    for (int64_t begin : {0, 1, 29, 30, 95}) {
      Run run;
      run.data = values.bytes.data() + begin * dtype_bytes(dtype);
      run.numel = 20 * kColumns - begin - 7;
      run.columns = kColumns;
      run.first_column = begin % kColumns;
      const RowReader reader(run, dtype);
      CHECK(reader.rows() == 20 - begin / kColumns, reader.rows(), begin);
      Floats scratch;
      for (int64_t first = 0; first < reader.rows(); ++first) {
        const int64_t count = std::min<int64_t>(3, reader.rows() - first);
        const float* x = reader.read(first, count, &scratch);
        for (int64_t i = 0; i < count * kColumns; ++i) {
          const int64_t at = first * kColumns + i - run.first_column;
          const bool there = at >= 0 && at < run.numel;
          CHECK(x[i] == (there ? values.floats[size(begin + at)] : 0.0f), begin, first, i);
        }
      }
    }
  }
}

// ---- segments

struct Coded {
  Status status = Status::kOk;
  std::vector<uint8_t> wire;
  Floats values, sums;    // decoded, and added to ones
  Floats quarters, less;  // the same with a factor of a quarter
};

Coded code(const CodecParams& p, const EncodeInput& input, size_t numel, Workspace& ws) {
  Coded coded;
  const size_t slot = slot_bytes(p, input);
  coded.wire.resize(slot);
  size_t written = 0;
  coded.status = encode(p, input, coded.wire.data(), slot, &written, ws);
  CHECK_IN(describe(p), coded.status == Status::kOk, static_cast<int>(coded.status));
  coded.wire.resize(written);
  const auto n = static_cast<int64_t>(numel);
  coded.values.resize(numel);
  coded.sums.assign(numel, 1.0f);
  Status status = decode(coded.wire.data(), written, coded.values.data(), n, false, ws);
  CHECK_IN(describe(p), status == Status::kOk, static_cast<int>(status));
  status = decode(coded.wire.data(), written, coded.sums.data(), n, true, ws);
  CHECK_IN(describe(p), status == Status::kOk, static_cast<int>(status));
  coded.quarters.resize(numel);
  coded.less.assign(numel, 1.0f);
  status = decode(coded.wire.data(), written, coded.quarters.data(), n, false, ws, 0.25f);
  CHECK_IN(describe(p), status == Status::kOk, static_cast<int>(status));
  status = decode(coded.wire.data(), written, coded.less.data(), n, true, ws, 0.25f);
  CHECK_IN(describe(p), status == Status::kOk, static_cast<int>(status));
  return coded;
}

std::vector<LowRankPart> parts_of(const std::vector<uint8_t>& wire) {
  SegmentLayout layout;
  CHECK(read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
  return layout.low_rank.parts;
}

// With low-rank parts, and one step for all unless said otherwise.
CodecParams low_rank_params(Kind kind, Target target, double value, int allocation8 = 0,
                            Rounding rounding = Rounding::kDeterministic) {
  CodecParams p = params(kind, target, value, allocation8, rounding);
  p.max_rank = 16;
  return p;
}

// A matrix cut in several runs, of which one is raw and two are too short for a part.
const std::vector<int64_t> kLengths = {70001, -1000, 300, 0, 24001, 25000};
constexpr int64_t kColumns = 150;

Values low_rank_values(DType dtype) {
  const Matrix matrix = make_low_rank(820, kColumns, {60, 40, 30}, 0.01, 8);
  int64_t numel = 0;
  for (int64_t n : kLengths) numel += std::abs(n);
  Values values;
  values.dtype = dtype;
  for (int64_t i = 0; i < numel; ++i) values.push(static_cast<double>(matrix.x[size(i)]));
  return values;
}

void set_first_columns(Input* input) {
  int64_t begin = 0;
  for (Run& run : input->runs) {
    run.first_column = begin % kColumns;
    begin += run.numel;
  }
}

std::vector<CodecParams> settings(DType dtype) {
  if (dtype != DType::kFloat32)
    return {low_rank_params(Kind::kGG, Target::kBits, 2),
            low_rank_params(Kind::kEG, Target::kSnrDb, 40, 4)};
  return {low_rank_params(Kind::kGG, Target::kBits, 2),
          low_rank_params(Kind::kGG, Target::kBits, 1, 4),
          low_rank_params(Kind::kGG, Target::kBits, 3, 0, Rounding::kStochastic),
          low_rank_params(Kind::kGG, Target::kSnrDb, 25),
          low_rank_params(Kind::kGG, Target::kStep, 0.02),
          low_rank_params(Kind::kEG, Target::kBits, 4),
          low_rank_params(Kind::kEG, Target::kSnrDb, 40, 4)};
}

void check_parts(const std::vector<uint8_t>& wire, const Input& input) {
  const std::vector<LowRankPart> parts = parts_of(wire);
  CHECK(!parts.empty());
  for (const LowRankPart& part : parts) {
    CHECK(part.run == 0 || part.run == 4 || part.run == 5, part.run);
    CHECK(part.columns == kColumns && part.rank <= 16, part.columns, part.rank);
    CHECK(part.first == input.runs[part.run].first_column, part.run, part.first);
  }
}

// Whatever the implementation and the number of threads. The raw run is exact.
void test_segments_are_the_same() {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
    Input input(low_rank_values(dtype), kLengths, kColumns);
    set_first_columns(&input);
    ThreadPool three(3);
    Workspace alone, threaded;
    threaded.pool = &three;
    const size_t numel = size(input.numel());
    for (const CodecParams& p : settings(dtype)) {
      CHECK(set_implementation("scalar"));
      const Coded reference = code(p, input.view, numel, alone);
      check_parts(reference.wire, input);
      const auto raw = reference.values.begin() + kLengths[0];
      CHECK(std::equal(raw, raw - kLengths[1], input.values.floats.begin() + kLengths[0]));
      for (size_t i = 0; i < numel; ++i) {
        CHECK_IN(describe(p), reference.sums[i] == 1.0f + reference.values[i], i);
        CHECK_IN(describe(p), reference.quarters[i] == 0.25f * reference.values[i], i);
        CHECK_IN(describe(p), reference.less[i] == 1.0f + 0.25f * reference.values[i], i);
      }
      for (const std::string& implementation : implementations()) {
        CHECK(set_implementation(implementation));
        for (Workspace* ws : {&alone, &threaded}) {
          const Coded coded = code(p, input.view, numel, *ws);
          CHECK_IN(describe(p), coded.wire == reference.wire, coded.wire.size());
          CHECK_IN(describe(p), same_bits(coded.values, reference.values));
          CHECK_IN(describe(p), same_bits(coded.sums, reference.sums));
        }
      }
    }
  }
}

void test_rank_is_limited() {
  Input input(low_rank_values(DType::kFloat32), kLengths, kColumns);
  set_first_columns(&input);
  Workspace ws;
  const size_t numel = size(input.numel());
  CodecParams p = low_rank_params(Kind::kGG, Target::kBits, 2);
  for (int rank : {1, 2, 16}) {
    p.max_rank = rank;
    int64_t largest = 0;
    for (const LowRankPart& part : parts_of(code(p, input.view, numel, ws).wire))
      largest = std::max(largest, part.rank);
    // The matrix is of rank 3; a direction of its noise may pay as well.
    CHECK(rank < 3 ? largest == rank : largest >= 3 && largest <= rank, rank, largest);
  }
  p.max_rank = 0;
  CHECK(parts_of(code(p, input.view, numel, ws).wire).empty());
  for (const CodecParams& without : {low_rank_params(Kind::kGG, Target::kBits, 2, 8),
                                     low_rank_params(Kind::kFixed, Target::kBits, 2),
                                     low_rank_params(Kind::kRaw, Target::kBits, 2)})
    CHECK(parts_of(code(without, input.view, numel, ws).wire).empty());
  for (int rank : {-1, 17, 1 << 30}) {
    p.max_rank = rank;
    std::vector<uint8_t> wire(slot_bytes(p, input.view));
    size_t written = 0;
    CHECK(encode(p, input.view, wire.data(), wire.size(), &written, ws) == Status::kBadArgument,
          rank);
  }
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_kernels();
  gct::test_energies();
  gct::test_threads_find_the_same_factors();
  gct::test_no_factors();
  gct::test_one_nonzero_row();
  gct::test_scales();
  gct::test_cut_matrices();
  gct::test_rows_are_read_as_they_are();
  gct::test_segments_are_the_same();
  gct::test_rank_is_limited();
  return gct::test::result();
}

// The codec's interface: raw pointers and Status, no torch, no allocation on the caller's behalf
// beyond the Workspace that the caller owns and reuses. Implementations (scalar reference, SIMD)
// give the same bytes.
//
// A *segment* is one self-describing message: header, one header per run, payload
// (docs/wire-format.md). A *run* is a stretch of elements with its own step and shape: a parameter,
// or the part of it that a chunk holds.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/common.h"

namespace gct {

enum class Kind : uint8_t {
  kRaw = 0,  // the input's bits (float64 as float32)
  kGG = 1,   // uniform deadzone quantizer + rANS with static generalized Gaussian tables
  kEG = 2,   // the same quantizer + exp-Golomb of the best order (the paper's coder)
  kFixed =
      3,  // 1 to 8 bits an element: Lloyd-Max codebook of a generalized Gaussian, one scale a block
};

enum class Target : uint8_t {
  kBits = 0,   // mean wire bits an element of the segment, headers included
  kSnrDb = 1,  // 10 log10(signal / error) over the segment's coded runs
  kStep = 2,   // quantizer step, in units of (block scale)^allocation
};

enum class Rounding : uint8_t { kDeterministic = 0, kStochastic = 1 };

// kHigh: the trellis quantizer, for kGG with deterministic rounding. Less error for the same bits,
// for more time.
enum class Effort : uint8_t { kNormal = 0, kHigh = 1 };

// What symbols decode to. kCentroid: the mean of what they stand for, which is the least error and
// smaller than the input. kUnitGain: as large as the input, by the model; for kGG and kEG with
// normal effort, deterministic rounding and targets other than kSnrDb.
enum class Reconstruction : uint8_t { kCentroid = 0, kUnitGain = 1 };

struct CodecParams {
  Kind kind = Kind::kGG;
  Target target = Target::kBits;
  double value = 2.0;  // bits, dB or step, by `target`; for kFixed the integer code width 1..8
  // Exponent of the block scale in the step, in eighths: 0 = one step for all ("mse"), 8 =
  // "relative".
  int allocation8 = 8;
  Rounding rounding = Rounding::kDeterministic;
  uint64_t seed = 0;  // for kStochastic; random bits depend on (seed, element position) only
  // Largest rank of a matrix's low-rank part, 0 to kLowRankWidth; 0: none. With allocation8 < 8.
  int max_rank = 0;
  Effort effort = Effort::kNormal;
  Reconstruction reconstruction = Reconstruction::kCentroid;
};

// One run of the input. `raw` runs travel uncompressed (exempt 1-D parameters).
struct Run {
  const void* data = nullptr;  // numel elements of EncodeInput::dtype
  int64_t numel = 0;
  uint64_t position = 0;  // index of the first element for the random counter; unique within (seed)
  bool raw = false;
  // Row length where the run is a matrix stored row by row, or a part of one cut anywhere; else 0.
  // The encoder may then send a scale offset for each column, and a low-rank part.
  int64_t columns = 0;
  int64_t first_column = 0;  // that of the run's first element
  // The encoder's own: values to code in the place of `data`, which stays what raw data come from.
  const float* residual = nullptr;
};

struct EncodeInput {
  DType dtype = DType::kFloat32;
  const Run* runs = nullptr;
  int64_t num_runs = 0;
};

// What the encoder found and did; sums over the segment.
struct EncodeStats {
  int64_t numel = 0;
  int64_t coded_numel = 0;       // elements in runs of mode `coded`
  int64_t nonfinite_runs = 0;    // runs replaced by NaN since they held NaN or Inf
  int64_t attempts = 0;          // encodings tried until the size fitted the target
  bool want_model_bits = false;  // in: also add up model_bits (costs time)
  // Ideal code length of symbols, classes and escapes under the tables, and the column profiles as
  // they are.
  double model_bits = 0;
};

// Asks encode() for what its segment decodes to, in a fraction of decode()'s time.
struct OwnValues {
  // In: as many values as the input has; the input's own place where its runs lie one after the
  // other.
  float* out = nullptr;
  float factor = 1;  // as decode() takes it
  // Whether they are there, with +0 in the place of -0. Else nothing was written: decode the
  // segment. So it is with other kinds than kGG, other dtypes than float32, NaN, and whatever isn't
  // plain (csrc/cpu/restore.h).
  bool restored = false;
};

// Statistics of one run as the encoder saw it; `shape` is 0 where there was nothing to fit.
struct RunStats {
  float scale = 0;  // mean |x|
  float shape = 0;  // of block-normalized values, the table grid's nearest
};

class ThreadPool;    // csrc/cpu/thread_pool.h
struct PieceOutput;  // csrc/cpu/pieces.h
struct Scratch;      // csrc/cpu/scratch.h

// Reused scratch. Grows to the largest request and stays, so that the same work again allocates
// nothing (but for encoding with low-rank parts); one per thread of control.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  ThreadPool* pool = nullptr;       // not owned; null = the calling thread alone
  std::vector<RunStats> run_stats;  // filled by encode(), one an input run

  size_t capacity_bytes() const;  // memory held

  // For the codec: by block of the coded runs, and pieces under way.
  std::vector<int16_t> classes;
  std::vector<float> block_mean;
  std::vector<float> block_square;  // sums of squares
  std::vector<int8_t> profiles;     // column offsets, run after run, each extended by a block
  std::vector<float> residuals;     // of runs with low-rank parts, one after the other
  std::vector<PieceOutput>& outputs();
  Scratch& scratch();

 private:
  std::unique_ptr<std::vector<PieceOutput>> outputs_;
  std::unique_ptr<Scratch> scratch_;
};

// Upper bound of encode()'s output for this input, whatever the values are.
size_t max_segment_bytes(const CodecParams& params, const EncodeInput& input);

// Size of the slot that a segment of kBits target always fits into; known to the receiver from the
// layout of the runs (numel and raw flag of each) alone. For other targets: the worst case.
size_t slot_bytes(const CodecParams& params, const EncodeInput& input);

// Encodes input into out[0, capacity). With Target::kBits the result is at most min(capacity,
// slot_bytes()) long and the step is chosen for it, kTooSmall if a smaller capacity doesn't hold
// even zeros; with other targets kTooSmall if it doesn't fit.
// *written is the segment's size.
Status encode(const CodecParams& params, const EncodeInput& input, uint8_t* out, size_t capacity,
              size_t* written, Workspace& workspace, EncodeStats* stats = nullptr,
              OwnValues* own = nullptr);

struct SegmentInfo {
  Kind kind = Kind::kRaw;
  int64_t numel = 0;
  int64_t num_runs = 0;
  int64_t size_bytes = 0;  // without the slot's padding
};

// Reads and checks all headers of wire[0, size); size may exceed the segment (slot padding).
Status inspect(const uint8_t* wire, size_t size, SegmentInfo* info);

// Decodes exactly numel elements. accumulate: out[i] += factor * value, else out[i] = factor *
// value; the factor is a power of two, which is exact while the result is a normal float.
// On an error out is unspecified.
Status decode(const uint8_t* wire, size_t size, float* out, int64_t numel, bool accumulate,
              Workspace& workspace, float factor = 1);

// One sentence for a user: what was expected, what to do.
const char* status_message(Status status);

// Implementations usable on this machine, best first ("avx512", "avx2", "scalar"
// or "neon", "scalar"); the one in use, chosen
// at first use or by GCT_FORCE_IMPL. set_implementation() is for tests and benchmarks; false if the
// name isn't usable here.
std::vector<std::string> implementations();
std::string implementation();
bool set_implementation(const std::string& name);

}  // namespace gct

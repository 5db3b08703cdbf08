#include "cuda/layout.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/class_code.h"

namespace gct::gpu {
namespace {

constexpr int64_t kAlignment = 256;

// Hands out aligned parts of a workspace; of none, to learn how large it has to be.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}

  template <typename T>
  void take(T** part, int64_t count) {
    if (base_ != nullptr) *part = reinterpret_cast<T*>(base_ + at_);
    at_ = round_up(at_ + count * static_cast<int64_t>(sizeof(T)), kAlignment);
  }
  int64_t size() const { return at_; }

 private:
  uint8_t* base_;
  int64_t at_ = 0;
};

template <typename T>
void append(const std::vector<T>& values, std::vector<uint8_t>* bytes) {
  bytes->resize(static_cast<size_t>(round_up(static_cast<int64_t>(bytes->size()), kAlignment)));
  const auto* begin = reinterpret_cast<const uint8_t*>(values.data());
  bytes->insert(bytes->end(), begin, begin + values.size() * sizeof(T));
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void check(const CodecParams& p, DType dtype) {
  require(dtype != DType::kFloat64,
          "gct: float64 is not encoded on GPUs: pass float32, bfloat16 or float16");
  require(p.kind != Kind::kEG,
          "gct: kind eg is not encoded on GPUs: use gg, fixed or raw, or a CPU tensor");
  require(p.kind == Kind::kRaw || p.kind == Kind::kFixed || p.target != Target::kSnrDb,
          "gct: a target in dB is not met on GPUs: use bits or step, or a CPU tensor");
  require(p.effort == Effort::kNormal,
          "gct: effort high is not encoded on GPUs: use effort=\"normal\", or a CPU tensor");
}

}  // namespace

EncodeLayout::EncodeLayout(const CodecParams& params, DType dtype,
                           const std::vector<SegmentRuns>& segments) {
  check(params, dtype);
  std::vector<BatchRun> runs;
  std::vector<BatchSegment> batch;
  EncodeBatch& e = sizes_;
  e.params = params;
  e.log2_value = std::log2(params.value);
  e.dtype = dtype;
  for (const SegmentRuns& source : segments) {
    BatchSegment s;
    s.first_run = e.num_runs;
    s.num_runs = static_cast<int64_t>(source.runs.size());
    s.first_block = e.num_blocks;
    s.first_piece = e.num_pieces;
    int64_t coded_blocks = 0;
    for (const Run& run : source.runs) {
      BatchRun r;
      r.offset = source.offset + s.numel;
      r.begin = s.numel;
      r.numel = run.numel;
      r.position = run.position;
      r.first_block = e.num_blocks;
      r.first_tile = e.num_tiles;
      r.segment = static_cast<int32_t>(batch.size());
      r.raw = run.raw ? 1 : 0;
      runs.push_back(r);
      s.numel += run.numel;
      e.num_blocks += num_blocks(run.numel);
      e.num_tiles += div_up(run.numel, kTileNumel);
      if (!run.raw) coded_blocks += num_blocks(run.numel);
    }
    if (s.numel == 0) {
      runs.resize(static_cast<size_t>(s.first_run));
      continue;
    }
    e.num_runs += s.num_runs;
    s.num_pieces = params.kind == Kind::kGG ? div_up(coded_blocks, kPieceBlocks) : 0;
    e.num_pieces += s.num_pieces;
    const EncodeInput input = {dtype, source.runs.data(), s.num_runs};
    s.out = out_bytes_;
    s.slot = static_cast<int64_t>(slot_bytes(params, input));
    out_bytes_ += s.slot;
    batch.push_back(s);
  }
  e.num_segments = static_cast<int64_t>(batch.size());
  e.group_slots = params.allocation8 == 8 ? tables::kNumShapes : tables::kNumShapes * kClasses;
  e.out_bytes = out_bytes_;
  append(runs, &descriptors_);
  append(batch, &descriptors_);
}

int64_t EncodeLayout::carve(uint8_t* scratch, EncodeBatch* e) const {
  const bool gg = sizes_.params.kind == Kind::kGG;
  const int64_t runs = sizes_.num_runs, segments = sizes_.num_segments, pieces = sizes_.num_pieces;
  Carver carver(scratch);
  carver.take(&e->tiles, sizes_.num_tiles);
  carver.take(&e->run_states, runs);
  carver.take(&e->states, segments);
  carver.take(&e->means, sizes_.num_blocks);
  carver.take(&e->classes, sizes_.num_blocks);
  if (!gg) return carver.size();
  carver.take(&e->notes, sizes_.num_blocks);
  carver.take(&e->groups, segments * sizes_.group_slots);
  carver.take(&e->pieces, pieces);
  carver.take(&e->symbols, pieces * kPieceSymbols);
  carver.take(&e->words, pieces * kPieceWords);
  carver.take(&e->extra, pieces * kPieceExtra);
  const int64_t begin = carver.size();
  carver.take(&e->histogram, segments * sizes_.group_slots);
  carver.take(&e->class_counts, runs * kClassSymbols);
  carver.take(&e->sample_bits, runs * kCandidates * kTableOffsets);
  carver.take(&e->sample_model, segments * kCandidates);
  if (scratch != nullptr) e->counters = scratch + begin;
  e->counters_bytes = carver.size() - begin;
  return carver.size();
}

int64_t EncodeLayout::scratch_bytes() const {
  EncodeBatch unused = sizes_;
  return carve(nullptr, &unused);
}

EncodeBatch EncodeLayout::bind(const uint8_t* descriptors, uint8_t* scratch,
                               const CodingTables& tables) const {
  EncodeBatch e = sizes_;
  carve(scratch, &e);
  const int64_t runs_bytes = e.num_runs * static_cast<int64_t>(sizeof(BatchRun));
  e.runs = reinterpret_cast<const BatchRun*>(descriptors);
  e.segments =
      reinterpret_cast<const BatchSegment*>(descriptors + round_up(runs_bytes, kAlignment));
  e.tables = tables;
  return e;
}

DecodeLayout::DecodeLayout(const std::vector<ExpectedSegment>& segments) {
  std::vector<WireSegment> batch;
  DecodeBatch& d = sizes_;
  for (const ExpectedSegment& source : segments) {
    WireSegment s;
    s.at = source.at;
    s.size = source.size;
    s.out = source.out;
    s.numel = source.numel;
    s.first_run = runs_;
    s.max_runs = source.max_runs;
    s.first_block = blocks_;
    s.max_blocks = source.numel / kBlock + source.max_runs;
    s.first_tile = d.num_tiles;
    s.max_tiles = std::max<int64_t>(1, div_up(source.numel, kTileNumel) + source.max_runs);
    s.first_task = d.num_tasks;
    s.num_tasks = std::max<int64_t>(1, div_up(s.max_blocks, kPieceBlocks));
    runs_ += s.max_runs;
    blocks_ += s.max_blocks;
    d.num_tiles += s.max_tiles;
    d.num_tasks += s.num_tasks;
    batch.push_back(s);
  }
  d.num_segments = static_cast<int64_t>(batch.size());
  append(batch, &descriptors_);
}

int64_t DecodeLayout::carve(uint8_t* scratch, DecodeBatch* d) const {
  Carver carver(scratch);
  carver.take(&d->states, sizes_.num_segments);
  carver.take(&d->runs, runs_);
  carver.take(&d->pieces, blocks_);
  carver.take(&d->classes, blocks_);
  return carver.size();
}

int64_t DecodeLayout::scratch_bytes() const {
  DecodeBatch unused = sizes_;
  return carve(nullptr, &unused);
}

DecodeBatch DecodeLayout::bind(const uint8_t* descriptors, uint8_t* scratch,
                               const CodingTables& tables) const {
  DecodeBatch d = sizes_;
  carve(scratch, &d);
  d.segments = reinterpret_cast<const WireSegment*>(descriptors);
  d.tables = tables;
  return d;
}

}  // namespace gct::gpu

#include "cpu/segment_writer.h"

#include <algorithm>
#include <cstring>

#include "core/bit_io.h"
#include "core/convert.h"
#include "cpu/columns.h"
#include "cpu/fixed.h"
#include "cpu/piece_classes.h"
#include "cpu/piece_ring.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace gct {
namespace {

// How far threads may run ahead of one that the system has put aside, in pieces for each thread.
constexpr int64_t kPiecesOfWorker = 8;

void store_words(const uint16_t* words, size_t count, uint8_t* p) {
  if (kLittleEndian && count > 0) {
    std::memcpy(p, words, 2 * count);
  } else {
    for (size_t i = 0; i < count; ++i) store_le<uint16_t>(p + 2 * i, words[i]);
  }
}

// Copies elements [0, numel) of a run as the raw type.
void write_raw(const Run& run, DType dtype, uint8_t* out) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) {
    const uint16_t* h = static_cast<const uint16_t*>(run.data);
    for (int64_t i = 0; i < run.numel; ++i) store_le<uint16_t>(out + 2 * i, h[i]);
    return;
  }
  float scratch[kBlock];
  for (int64_t i = 0; i < run.numel; i += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, run.numel - i));
    const float* x = load_floats(run, dtype, i, n, scratch);
    for (int j = 0; j < n; ++j) store_le<uint32_t>(out + 4 * (i + j), float_bits(x[j]));
  }
}

}  // namespace

SegmentWriter::SegmentWriter(const CodecParams& params, const EncodeInput& input,
                             const SegmentSizes& sizes, Workspace* ws, EncodeStats* stats,
                             uint8_t* out, size_t capacity)
    : params_(params),
      input_(input),
      sizes_(sizes),
      ws_(*ws),
      plan_(ws->scratch().plan),
      stats_(stats),
      out_(out),
      capacity_(capacity),
      sections_(ws_.scratch().sections) {
  sections_.clear();
}

void SegmentWriter::make_sections(const std::vector<uint8_t>* low_rank_parts) {
  BitWriter bits(&sections_);
  for (const RunPlan& p : plan_.runs) {
    if (p.header.columns == 0) continue;
    if (sections_.empty()) sections_.resize(4);
    write_profile(&ws_.profiles[p.profile], p.header.columns, &bits);
  }
  if (!sections_.empty()) {
    bits.finish();
    store_le<uint32_t>(sections_.data(), static_cast<uint32_t>(sections_.size() - 4));
  }
  low_rank_ = low_rank_parts != nullptr;
  if (low_rank_) sections_.insert(sections_.end(), low_rank_parts->begin(), low_rank_parts->end());
}

void SegmentWriter::drop_sections() {
  sections_.clear();
  low_rank_ = false;
}

int64_t SegmentWriter::num_pieces() const {
  return div_up(plan_.coded_blocks, int64_t{1} << kPieceBlocksLog2);
}

SegmentHeader SegmentWriter::segment_header(WireKind kind, size_t size) const {
  SegmentHeader h;
  h.kind = kind;
  if (params_.rounding == Rounding::kStochastic && kind != WireKind::kRaw)
    h.flags |= kFlagStochastic;
  if (params_.reconstruction == Reconstruction::kUnitGain && has_pieces(kind))
    h.flags |= kFlagUnitGain;
  if (low_rank_ && has_pieces(kind)) h.flags |= kFlagLowRank;
  if (params_.effort == Effort::kHigh && kind == WireKind::kGG) h.flags |= kFlagTrellis;
  h.raw_type = raw_type_of(input_.dtype);
  h.num_runs = static_cast<uint32_t>(input_.num_runs);
  h.numel = sizes_.numel;
  h.size_bytes = static_cast<int64_t>(size);
  h.num_pieces = has_pieces(kind) ? static_cast<uint32_t>(num_pieces()) : 0;
  h.fixed_bits = kind == WireKind::kFixed ? static_cast<uint8_t>(params_.value) : 0;
  return h;
}

void SegmentWriter::write_headers(const SegmentHeader& header) {
  write_segment_header(header, out_);
  for (size_t i = 0; i < plan_.runs.size(); ++i)
    write_run_header(plan_.runs[i].header, out_ + kSegmentHeaderBytes + kRunHeaderBytes * i);
}

// Raw data of all raw runs, ending at `end`.
void SegmentWriter::write_raw_runs(size_t end) {
  uint8_t* p = out_ + end - static_cast<size_t>(plan_.raw_numel * sizes_.raw_bytes);
  for (size_t i = 0; i < plan_.runs.size(); ++i) {
    if (plan_.runs[i].header.mode != RunMode::kRaw) continue;
    write_raw(input_.runs[i], input_.dtype, p);
    p += input_.runs[i].numel * sizes_.raw_bytes;
  }
}

Status SegmentWriter::write_all_raw(size_t* written) {
  const size_t size = static_cast<size_t>(sizes_.all_raw());
  if (size > capacity_) return Status::kTooSmall;
  plan_.raw_numel = sizes_.numel;
  plan_.coded_blocks = 0;
  for (RunPlan& p : plan_.runs) {
    const int64_t numel = p.header.numel;
    p.header = RunHeader();
    p.header.numel = numel;
    p.header.mode = RunMode::kRaw;
  }
  write_headers(segment_header(WireKind::kRaw, size));
  write_raw_runs(size);
  *written = size;
  return Status::kOk;
}

Status SegmentWriter::write_fixed(size_t* written) {
  const int bits = static_cast<int>(params_.value);
  size_t size = static_cast<size_t>(sizes_.headers + plan_.raw_numel * sizes_.raw_bytes);
  for (RunPlan& p : plan_.runs) {
    p.header.code.allocation8 = 0;
    p.header.base_class = 0;
    if (p.header.mode == RunMode::kCoded)
      size += static_cast<size_t>(fixed_run_bytes(p.header.numel, bits));
  }
  if (size > static_cast<size_t>(sizes_.all_raw())) return write_all_raw(written);
  if (size > capacity_) return Status::kTooSmall;
  write_headers(segment_header(WireKind::kFixed, size));
  uint8_t* p = out_ + sizes_.headers;
  for (size_t i = 0; i < plan_.runs.size(); ++i) {
    const RunPlan& run = plan_.runs[i];
    if (run.header.mode != RunMode::kCoded) continue;
    encode_fixed_run(input_.runs[i], input_.dtype, run.header, bits,
                     &ws_.block_mean[static_cast<size_t>(run.first_block)], p);
    p += fixed_run_bytes(run.header.numel, bits);
  }
  write_raw_runs(size);
  *written = size;
  return Status::kOk;
}

Status SegmentWriter::write_pieces(size_t limit, size_t* written) {
  if (stats_ != nullptr) {
    ++stats_->attempts;
    const bool wanted = stats_->want_model_bits && params_.kind == Kind::kGG;
    stats_->model_bits = wanted ? 8.0 * static_cast<double>(sections_.size()) : 0;
  }
  prepare_classes(&plan_);
  if (params_.kind == Kind::kEG) {  // which has no class models
    for (RunPlan& p : plan_.runs) p.header.model = 0;
  }
  const int64_t pieces = num_pieces();
  const size_t raw_bytes = static_cast<size_t>(plan_.raw_numel * sizes_.raw_bytes);
  const size_t table = static_cast<size_t>(sizes_.headers) + sections_.size();
  PiecePlace place = {out_ + table, table + kPieceEntryBytes * static_cast<size_t>(pieces),
                      raw_bytes, limit};
  encode_pieces(pieces, &place);
  total_size_ = place.at + raw_bytes;
  if (total_size_ > limit) return Status::kTooSmall;
  const WireKind kind = params_.kind == Kind::kGG ? WireKind::kGG : WireKind::kEG;
  write_headers(segment_header(kind, total_size_));
  std::copy(sections_.begin(), sections_.end(), out_ + sizes_.headers);
  write_raw_runs(total_size_);
  *written = total_size_;
  return Status::kOk;
}

void SegmentWriter::place_piece(const PieceOutput& piece, PiecePlace* place) {
  const size_t size = piece_bytes(piece);
  if (place->at + size + place->behind <= place->limit)
    copy_piece(piece, place->entry, out_ + place->at);
  place->entry += kPieceEntryBytes;
  place->at += size;
  if (stats_ != nullptr) stats_->model_bits += piece.model_bits;
}

void SegmentWriter::encode_pieces(int64_t count, PiecePlace* place) {
  TrellisScratch* trellis = params_.effort == Effort::kHigh ? trellis_scratch() : nullptr;
  const int64_t workers = worker_count(ws_.pool);
  const int64_t room = workers > 1 ? std::min(count, kPiecesOfWorker * workers) : 1;
  PieceRing ring(static_cast<size_t>(room), &ws_.outputs());
  const auto body = [&](int64_t i, int worker) {
    PieceOutput* out = ring.begin(i);
    if (out == nullptr) return;
    try {
      encode_piece(i, trellis != nullptr ? trellis + worker : nullptr, out);
    } catch (...) {
      ring.stop();
      throw;
    }
    ring.finish(i, [&](const PieceOutput& piece) { place_piece(piece, place); });
  };
  parallel_for(ws_.pool, count, body);
}

void SegmentWriter::encode_piece(int64_t i, TrellisScratch* trellis, PieceOutput* out) const {
  const int64_t begin = i << kPieceBlocksLog2;
  const int64_t end = std::min(begin + (int64_t{1} << kPieceBlocksLog2), plan_.coded_blocks);
  if (params_.kind == Kind::kGG) {
    const bool want_model_bits = stats_ != nullptr && stats_->want_model_bits;
    encode_piece_gg(plan_, begin, end, want_model_bits, trellis, out);
  } else {
    encode_piece_eg(plan_, begin, end, out);
  }
}

// One for each thread.
TrellisScratch* SegmentWriter::trellis_scratch() {
  std::vector<TrellisScratch>& threads = ws_.scratch().trellis;
  threads.resize(std::max(threads.size(), static_cast<size_t>(worker_count(ws_.pool))));
  const int64_t blocks = std::min(int64_t{1} << kPieceBlocksLog2, plan_.coded_blocks);
  for (TrellisScratch& thread : threads) thread.reserve(static_cast<size_t>(blocks));
  return threads.data();
}

size_t SegmentWriter::piece_bytes(const PieceOutput& piece) const {
  const size_t lanes = params_.kind == Kind::kGG ? kLaneBytes : 0;
  return lanes + 2 * size_t{piece.num_words()} + piece.extra.size();
}

void SegmentWriter::copy_piece(const PieceOutput& piece, uint8_t* entry, uint8_t* p) const {
  store_le<uint32_t>(entry, piece.num_words());
  store_le<uint32_t>(entry + 4, static_cast<uint32_t>(piece.extra.size()));
  if (params_.kind == Kind::kGG) {
    for (int i = 0; i < kLanes; ++i) store_le<uint32_t>(p + 4 * i, piece.states[i]);
    p += kLaneBytes;
  }
  store_words(piece.words.data() + piece.first_word, piece.num_words(), p);
  p += 2 * size_t{piece.num_words()};
  std::copy(piece.extra.begin(), piece.extra.end(), p);
}

}  // namespace gct

// From values to a segment: analyze, choose a step, write headers, pieces and raw data.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec.h"
#include "core/convert.h"
#include "core/rate_target.h"
#include "cpu/columns.h"
#include "cpu/fixed.h"
#include "cpu/low_rank_encoder.h"
#include "cpu/pieces.h"
#include "cpu/rate.h"
#include "cpu/scratch.h"
#include "cpu/segment_sizes.h"
#include "cpu/thread_pool.h"

namespace gct {
namespace {

constexpr int kMaxAttempts = 6;
// Pieces of a thread between two moments at which all wait: waking threads costs as much as a
// piece.
constexpr int64_t kPiecesOfWorker = 8;
// Share of a slot's payload that factors of low-rank parts may take: column profiles may have 4 %.
constexpr double kMostForFactors = 0.9;
constexpr double kCloseEnough = 0.98;  // 0.1 dB
// The trellis' rate falls up to half as fast with the step as the model's.
constexpr double kTrellisPace = 1.5;
// Data of one magnitude fall from 1 bit to 0.2 in a tenth of an octave: more attempts, by halves.
constexpr int kTrellisAttempts = 12;
constexpr double kTrellisLeastShare = 0.35;
constexpr double kShort = 0.75;  // of the slot

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

class SegmentEncoder {
 public:
  SegmentEncoder(const CodecParams& params, const EncodeInput& input, uint8_t* out, size_t capacity,
                 Workspace& ws)
      : params_(params),
        input_(input),
        out_(out),
        capacity_(capacity),
        ws_(ws),
        sizes_(params, input),
        plan_(ws.scratch().plan),
        sections_(ws.scratch().sections) {
    sections_.clear();
  }

  Status run(size_t* written, EncodeStats* stats) {
    stats_ = stats;
    analyze(params_, input_, ws_, &plan_);
    separate_low_rank();
    measure_profiles(&plan_);
    write_sections();
    const Status status = encode_plan(written);
    if (stats != nullptr) {
      stats->numel = sizes_.numel;
      stats->nonfinite_runs = plan_.nonfinite_runs;
      for (const RunPlan& p : plan_.runs)
        stats->coded_numel += p.header.mode == RunMode::kCoded ? p.header.numel : 0;
    }
    return status;
  }

 private:
  // Where low-rank parts pay, the plan becomes that of the residuals. Not with the step in
  // proportion to the block's scale (exponent 1): there the residual's rate would stay what it is.
  void separate_low_rank() {
    signal_ = plan_.signal;
    const bool pieces = params_.kind == Kind::kGG || params_.kind == Kind::kEG;
    if (!pieces || params_.max_rank == 0 || params_.allocation8 >= 8) return;
    // Zeros alone must fit the slot beside the factors, whatever the residuals are.
    const double room = static_cast<double>(slot_bytes(params_, input_)) -
                        static_cast<double>(sizes_.headers + plan_.raw_numel * sizes_.raw_bytes) -
                        static_cast<double>(num_pieces() * kPieceOverheadBytes);
    if (!low_rank_.encode(plan_, room, kMostForFactors * room)) return;
    const std::vector<RunStats> stats = ws_.run_stats;
    plan_of_residuals();
    bool sound = low_rank_.pays(plan_);
    // Factors alone may come closer than asked; nothing in the residual could take that back.
    const double error = allowed_error();
    for (int i = 0; i < kMaxAttempts && sound && params_.target == Target::kSnrDb; ++i) {
      if (plan_.signal >= kCloseEnough * error) break;
      const double octaves = 0.5 * std::log2(error / std::max(plan_.signal, 0.01 * error));
      sound = low_rank_.encode_coarser(std::max(octaves, 0.02));
      if (sound) plan_of_residuals();
    }
    use_low_rank_ = sound;
    if (!sound) analyze(params_, input_, ws_, &plan_);
    ws_.run_stats = stats;
  }

  // Of a target in dB: the squared error over the coded runs.
  double allowed_error() const { return signal_ * std::pow(10.0, -params_.value / 10); }

  void plan_of_residuals() { analyze(params_, low_rank_.input(), ws_, &plan_); }

  // Column profiles, length and bits, then low-rank parts; nothing where there are none.
  void write_sections() {
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
    if (!use_low_rank_) return;
    const std::vector<uint8_t>& parts = low_rank_.section();
    sections_.insert(sections_.end(), parts.begin(), parts.end());
  }

  // Isolated values among zeros are better off without the trellis: each would have to fit the
  // state that the zeros leave. The sample says which way has less error for its bits.
  void choose_effort() {
    if (params_.effort != Effort::kHigh || params_.target == Target::kStep) return;
    const double high = sampled_cost();
    params_.effort = Effort::kNormal;
    if (high < sampled_cost()) params_.effort = Effort::kHigh;
  }

  double sampled_cost() {
    RateControl control(plan_);
    const double log2_step =
        params_.target == Target::kSnrDb
            ? control.step_for_error(allowed_error())
            : control.step_for_bits(8 * std::max(bytes_of_symbols(fixed_overhead()), 0.0));
    return control.sampled_cost(log2_step);
  }

  Status encode_plan(size_t* written) {
    if (params_.kind == Kind::kRaw) return write_all_raw(written);
    if (params_.kind == Kind::kFixed) return write_fixed(written);
    if (plan_.coded_blocks == 0) return write_pieces(capacity_, written);
    if (params_.target == Target::kBits) return encode_for_bits(written);
    choose_effort();
    RateControl control(plan_);
    double log2_step = std::log2(params_.value);
    if (params_.target == Target::kSnrDb) {
      log2_step = control.step_for_error(allowed_error());
    }
    control.apply(log2_step, &plan_);
    if (params_.target == Target::kStep) set_exact_step(static_cast<float>(params_.value));
    if (!all_blocks_have_codes()) return write_all_raw(written);
    const Status status =
        write_pieces(std::min(capacity_, static_cast<size_t>(sizes_.all_raw())), written);
    return status == Status::kTooSmall ? write_all_raw(written) : status;
  }

  size_t slot_to_fill() const { return std::min(capacity_, slot_bytes(params_, input_)); }
  double bytes_of_symbols(double overhead) const {
    return kAim * static_cast<double>(slot_to_fill()) - overhead;
  }

  Status encode_for_bits(size_t* written) {
    const size_t slot = slot_to_fill();
    if (static_cast<size_t>(sizes_.all_raw()) <= slot) return write_all_raw(written);
    const bool asked = params_.effort == Effort::kHigh;
    choose_effort();
    const Status status = fill(slot, written);
    const bool short_of = static_cast<double>(total_size_) < kShort * static_cast<double>(slot);
    if (status != Status::kOk || !asked || params_.effort == Effort::kHigh || !short_of)
      return status;
    // Data of one magnitude: no step of the plain quantizer comes near.
    params_.effort = Effort::kHigh;
    assign_classes(&plan_);  // where the last step made zeros of blocks
    return fill(slot, written);
  }

  // Step by rate control. Where the size misses the target it is encoded again: first a step
  // changed by what the model says of the miss, then one between a step that was too fine and one
  // that was too coarse.
  Status fill(size_t slot, size_t* written) {
    const double overhead = fixed_overhead();
    const bool trellis = params_.effort == Effort::kHigh;
    const double aim = bytes_of_symbols(overhead);
    RateControl control(plan_);
    Trial fine, coarse;  // the closest ones over and under the slot
    double log2_step = control.step_for_bits(8 * std::max(aim, 0.0));
    for (int attempt = 0; attempt < (trellis ? kTrellisAttempts : kMaxAttempts); ++attempt) {
      control.apply(log2_step, &plan_);
      const Status status = write_pieces(slot, written);
      const Trial trial = {true, log2_step, static_cast<double>(total_size_) - overhead};
      if (status == Status::kOk) {
        coarse = trial;
        const double enough = kAcceptFrom - kPatience * attempt;
        if (static_cast<double>(total_size_) >= enough * static_cast<double>(slot)) return status;
      } else {
        fine = trial;
      }
      const double factor = aim / std::max(trial.size, 1.0);
      // Data that no step makes large enough (one magnitude, a few values) stay under their target.
      if (status == Status::kOk && factor > 4 && !(trellis && (fine.known || attempt < 2)))
        return status;
      if (fine.known && coarse.known) {
        const double share = (fine.size - aim) / (fine.size - coarse.size);
        const double least = trellis ? kTrellisLeastShare : 0.1;
        log2_step = fine.log2_step + std::min(std::max(share, least), 1 - least) *
                                         (coarse.log2_step - fine.log2_step);
      } else {
        // Where the model's change doesn't get under the slot (exp-Golomb takes a bit an element up
        // to the step that zeroes whole blocks), octaves do.
        const bool stuck = status != Status::kOk && attempt > (trellis ? 2 : 0);
        const double least = stuck ? std::exp2(attempt - 1) : -1e3;
        const double pace = trellis ? kTrellisPace : 1;
        log2_step += std::max(pace * control.change_for_factor(log2_step, factor), least);
        log2_step = control.within(log2_step);  // beyond, large blocks have no code
      }
    }
    control.apply(coarse.known ? coarse.log2_step : control.coarsest(), &plan_);
    const Status status = write_pieces(slot, written);
    if (status == Status::kOk || capacity_ < slot_bytes(params_, input_)) return status;
    // Only with blocks so large (means over 2^108) that no step within float32 makes zeros of them
    // and too few bits for anything else: a NaN is loud, zeros wouldn't be.
    for (RunPlan& p : plan_.runs) {
      if (p.header.mode == RunMode::kCoded) p.header.mode = RunMode::kNonFinite;
      p.header.columns = 0;
    }
    sections_.clear();
    use_low_rank_ = false;
    plan_.coded_blocks = 0;
    return write_pieces(slot, written);
  }

  struct Trial {
    bool known = false;
    double log2_step = 0, size = 0;  // bytes of symbols
  };

  // Bytes that don't depend on the step. Of a lane's 4 bytes about one holds symbols.
  double fixed_overhead() {
    const double lanes = params_.kind == Kind::kGG ? 0.75 * kLaneBytes : 0;
    return static_cast<double>(sizes_.headers + plan_.raw_numel * sizes_.raw_bytes) +
           static_cast<double>(sections_.size()) + class_bits(&plan_) / 8 +
           static_cast<double>(num_pieces()) * (lanes + kPieceEntryBytes + 0.5);
  }

  int64_t num_pieces() const { return div_up(plan_.coded_blocks, int64_t{1} << kPieceBlocksLog2); }

  void set_exact_step(float step) {
    for (RunPlan& p : plan_.runs) p.header.code.step = step;
  }

  bool all_blocks_have_codes() const {
    bool ok = true;
    for_each_block(plan_, 0, plan_.coded_blocks, [&](size_t r, int64_t local, int n, int64_t b) {
      BlockCode code;
      const RunHeader& run = plan_.runs[r].header;
      const int c = ws_.classes[static_cast<size_t>(b)];
      if (!ok || c == kZeroClass) return;
      ok = block_code(run.code, c, &code);
      if (ok && run.columns > 0 && code.shift > kSafeShiftOfProfiles)
        ok = magnitudes_fit(r, local, n, code.step);
    });
    return ok;
  }

  bool magnitudes_fit(size_t r, int64_t block, int n, float step) const {
    float scratch[kBlock];
    const float* x = load_floats(plan_.input->runs[r], input_.dtype, block * kBlock, n, scratch);
    const float limit = step * kMagnitudeLimit;
    return std::all_of(x, x + n, [&](float value) { return std::fabs(value) < limit; });
  }

  SegmentHeader segment_header(WireKind kind, size_t size) const {
    SegmentHeader h;
    h.kind = kind;
    h.flags =
        params_.rounding == Rounding::kStochastic && kind != WireKind::kRaw ? kFlagStochastic : 0;
    if (use_low_rank_ && has_pieces(kind)) h.flags |= kFlagLowRank;
    if (params_.effort == Effort::kHigh && kind == WireKind::kGG) h.flags |= kFlagTrellis;
    h.raw_type = raw_type_of(input_.dtype);
    h.num_runs = static_cast<uint32_t>(input_.num_runs);
    h.numel = sizes_.numel;
    h.size_bytes = static_cast<int64_t>(size);
    h.num_pieces = has_pieces(kind) ? static_cast<uint32_t>(num_pieces()) : 0;
    h.fixed_bits = kind == WireKind::kFixed ? static_cast<uint8_t>(params_.value) : 0;
    return h;
  }

  void write_headers(const SegmentHeader& header) {
    write_segment_header(header, out_);
    for (size_t i = 0; i < plan_.runs.size(); ++i)
      write_run_header(plan_.runs[i].header, out_ + kSegmentHeaderBytes + kRunHeaderBytes * i);
  }

  // Raw data of all raw runs, ending at `end`.
  void write_raw_runs(size_t end) {
    uint8_t* p = out_ + end - static_cast<size_t>(plan_.raw_numel * sizes_.raw_bytes);
    for (size_t i = 0; i < plan_.runs.size(); ++i) {
      if (plan_.runs[i].header.mode != RunMode::kRaw) continue;
      write_raw(input_.runs[i], input_.dtype, p);
      p += input_.runs[i].numel * sizes_.raw_bytes;
    }
  }

  Status write_all_raw(size_t* written) {
    const size_t size = static_cast<size_t>(sizes_.all_raw());
    if (size > capacity_) return Status::kTooSmall;
    plan_.raw_numel = sizes_.numel;
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

  Status write_fixed(size_t* written) {
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

  // Encodes all pieces with the present step. kTooSmall if they exceed limit; total_size_ is right
  // in any case.
  Status write_pieces(size_t limit, size_t* written) {
    if (stats_ != nullptr) {
      ++stats_->attempts;
      const bool wanted = stats_->want_model_bits && params_.kind == Kind::kGG;
      stats_->model_bits = wanted ? 8.0 * static_cast<double>(sections_.size()) : 0;
    }
    prepare_classes(&plan_);
    if (params_.kind == Kind::kEG) clear_class_models();
    const int64_t pieces = num_pieces();
    const size_t raw_bytes = static_cast<size_t>(plan_.raw_numel * sizes_.raw_bytes);
    const size_t table = static_cast<size_t>(sizes_.headers) + sections_.size();
    size_t at = table + kPieceEntryBytes * static_cast<size_t>(pieces);
    const int workers = ws_.pool != nullptr ? ws_.pool->size() : 1;
    std::vector<PieceOutput>& outputs = ws_.outputs();
    const int64_t wave = workers > 1 ? kPiecesOfWorker * int64_t{workers} : 1;
    for (int64_t first = 0; first < pieces; first += wave) {
      const int64_t count = std::min(wave, pieces - first);
      encode_wave(first, count, &outputs);
      for (int64_t i = 0; i < count; ++i) {
        const PieceOutput& piece = outputs[static_cast<size_t>(i)];
        const size_t size = piece_bytes(piece);
        if (at + size + raw_bytes <= limit) {
          copy_piece(piece, out_ + table + kPieceEntryBytes * static_cast<size_t>(first + i),
                     out_ + at);
        }
        at += size;
        if (stats_ != nullptr) stats_->model_bits += piece.model_bits;
      }
    }
    total_size_ = at + raw_bytes;
    if (total_size_ > limit) return Status::kTooSmall;
    const WireKind kind = params_.kind == Kind::kGG ? WireKind::kGG : WireKind::kEG;
    write_headers(segment_header(kind, total_size_));
    std::copy(sections_.begin(), sections_.end(), out_ + sizes_.headers);
    write_raw_runs(total_size_);
    *written = total_size_;
    return Status::kOk;
  }

  void clear_class_models() {
    for (RunPlan& p : plan_.runs) p.header.model = 0;
  }

  void encode_wave(int64_t first, int64_t count, std::vector<PieceOutput>* outputs) {
    if (outputs->size() < static_cast<size_t>(count)) outputs->resize(static_cast<size_t>(count));
    std::vector<TrellisScratch>& trellis = trellis_scratch();
    const auto body = [&](int64_t i, int worker) {
      const int64_t begin = (first + i) << kPieceBlocksLog2;
      const int64_t end = std::min(begin + (int64_t{1} << kPieceBlocksLog2), plan_.coded_blocks);
      PieceOutput* out = &(*outputs)[static_cast<size_t>(i)];
      if (params_.kind == Kind::kGG) {
        encode_piece_gg(plan_, begin, end, stats_ != nullptr && stats_->want_model_bits,
                        trellis.empty() ? nullptr : &trellis[static_cast<size_t>(worker)], out);
      } else {
        encode_piece_eg(plan_, begin, end, out);
      }
    };
    if (ws_.pool != nullptr && count > 1) {
      ws_.pool->parallel_for(count, body);
    } else {
      for (int64_t i = 0; i < count; ++i) body(i, 0);
    }
  }

  // By thread; of normal effort there may be none.
  std::vector<TrellisScratch>& trellis_scratch() {
    std::vector<TrellisScratch>& threads = ws_.scratch().trellis;
    if (params_.effort == Effort::kNormal) return threads;
    const int workers = ws_.pool != nullptr ? ws_.pool->size() : 1;
    threads.resize(std::max(threads.size(), static_cast<size_t>(workers)));
    const int64_t blocks = std::min(int64_t{1} << kPieceBlocksLog2, plan_.coded_blocks);
    for (TrellisScratch& thread : threads) thread.reserve(static_cast<size_t>(blocks));
    return threads;
  }

  size_t piece_bytes(const PieceOutput& piece) const {
    const size_t lanes = params_.kind == Kind::kGG ? kLaneBytes : 0;
    return lanes + 2 * size_t{piece.num_words()} + piece.extra.size();
  }

  void copy_piece(const PieceOutput& piece, uint8_t* entry, uint8_t* p) const {
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

  CodecParams params_;  // choose_effort() changes it
  const EncodeInput& input_;
  uint8_t* out_;
  size_t capacity_;
  Workspace& ws_;
  SegmentSizes sizes_;
  EncodePlan& plan_;
  EncodeStats* stats_ = nullptr;
  LowRankEncoder low_rank_;
  bool use_low_rank_ = false;
  double signal_ = 0;               // sum of squares over the coded runs, low-rank parts included
  std::vector<uint8_t>& sections_;  // between run headers and piece table
  size_t total_size_ = 0;
};

bool valid(const CodecParams& p, const EncodeInput& input) {
  if (input.num_runs < 0 || (input.num_runs > 0 && input.runs == nullptr)) return false;
  for (int64_t i = 0; i < input.num_runs; ++i) {
    if (input.runs[i].numel < 0 || (input.runs[i].numel > 0 && input.runs[i].data == nullptr))
      return false;
  }
  if (p.effort == Effort::kHigh && (p.kind != Kind::kGG || p.rounding != Rounding::kDeterministic))
    return false;
  if (p.kind == Kind::kRaw) return true;
  if (p.allocation8 < 0 || p.allocation8 > 8 || !std::isfinite(p.value)) return false;
  if (p.kind == Kind::kFixed) {
    return p.target == Target::kBits && p.rounding == Rounding::kDeterministic && p.value >= 1 &&
           p.value <= 8 && p.value == std::floor(p.value);
  }
  return p.value > 0 && p.max_rank >= 0 && p.max_rank <= kLowRankWidth;
}

}  // namespace

Status encode(const CodecParams& params, const EncodeInput& input, uint8_t* out, size_t capacity,
              size_t* written, Workspace& workspace, EncodeStats* stats) {
  if (!valid(params, input) || out == nullptr || written == nullptr) return Status::kBadArgument;
  return SegmentEncoder(params, input, out, capacity, workspace).run(written, stats);
}

}  // namespace gct

#include <algorithm>
#include <cstring>

#include "cpu/columns.h"
#include "cpu/kernels.h"
#include "cpu/pieces.h"

namespace gct {
namespace {

constexpr int kZeroBlock = 0;
constexpr int kClassEscape = 1;
constexpr int kFirstDelta = 2;

struct DecodedBlock {
  const RunHeader* run;
  float* out;
  int n;
  bool zero;
  BlockCode code;
  const int8_t* offsets;  // of its columns, or nullptr
};

// Table of each element, as an index among all.
class ElementTables {
 public:
  explicit ElementTables(const DecodedBlock& block)
      : first_(block.run->code.shape * tables::kTablesPerShape), own_(block.code.table) {
    if (block.offsets == nullptr) return;
    choose_tables(block.code.t, block.offsets, block.n, choice_);
    varied_ = true;
  }

  int operator[](int i) const { return varied_ ? first_ + choice_[i] : own_; }
  const uint8_t* choice() const { return varied_ ? choice_ : nullptr; }
  // What kernels take: the own table among its shape's, or the shape's first.
  int base() const { return varied_ ? 0 : own_ - first_; }

 private:
  int first_, own_;
  bool varied_ = false;
  uint8_t choice_[kBlock];
};

// The piece's blocks in order, with run, place and length; classes come later.
void list_blocks(const std::vector<RunPlace>& runs, const PieceInput& piece,
                 std::vector<DecodedBlock>* blocks) {
  auto run = std::upper_bound(runs.begin(), runs.end(), piece.begin,
                              [](int64_t b, const RunPlace& r) { return b < r.first_block; }) -
             1;
  for (int64_t b = piece.begin; b < piece.end; ++b) {
    while (b >= run->first_block + num_blocks(run->header->numel)) ++run;
    const int64_t start = (b - run->first_block) * kBlock;
    const int n = static_cast<int>(std::min<int64_t>(kBlock, run->header->numel - start));
    const int8_t* offsets = block_offsets(run->profile, run->header->columns, b - run->first_block);
    blocks->push_back({run->header, run->out + start, n, true, {}, offsets});
  }
}

// Undoes the encoder's prediction; false on a class out of range.
class ClassRestorer {
 public:
  bool next(DecodedBlock* block, bool zero, int delta) {
    if (block->run != run_) predicted_ = block->run->base_class;
    run_ = block->run;
    block->zero = zero;
    if (zero) return true;
    predicted_ += delta;
    return predicted_ >= kMinClass && predicted_ <= kMaxClass &&
           block_code(run_->code, predicted_, &block->code);
  }

 private:
  const RunHeader* run_ = nullptr;
  int predicted_ = 0;
};

void store(float value, bool accumulate, float* out) { *out = accumulate ? *out + value : value; }

void store_zeros(const DecodedBlock& block, bool accumulate) {
  if (!accumulate) std::fill(block.out, block.out + block.n, 0.0f);
}

struct RansState {
  uint32_t lanes[kLanes];
  const uint16_t* words;
  const uint16_t* words_end;
  uint8_t trellis[kLanes] = {};  // each lane's state
};

Status decode_classes(RansState* s, std::vector<DecodedBlock>* blocks, BitReader* extra) {
  ClassRestorer restorer;
  for (size_t b = 0; b < blocks->size(); ++b) {
    DecodedBlock& block = (*blocks)[b];
    uint8_t symbol;
    // A table serves one lane at a time here: neighbours may belong to runs with other models.
    s->words =
        scalar_kernels()->decode(&s->lanes[b % kLanes], &class_decode_table(block.run->model),
                                 nullptr, 1, s->words, s->words_end, &symbol);
    if (s->words == nullptr) return Status::kCorrupt;
    int delta = symbol - kFirstDelta - tables::kClassDeltaMax;
    uint32_t escaped = 0;
    if (symbol == kClassEscape) {
      if (!get_golomb(extra, 3, &escaped) || escaped > 2048) return Status::kCorrupt;
      delta = unzigzag(escaped);
    }
    if (!restorer.next(&block, symbol == kZeroBlock, delta)) return Status::kCorrupt;
  }
  return Status::kOk;
}

// Magnitude of an escape; false if the bits end or it is out of range.
bool get_escape(BitReader* extra, int table, bool* negative, int32_t* magnitude) {
  uint32_t excess;
  *negative = extra->get(1) != 0;
  if (!get_golomb(extra, escape_order(table), &excess) || excess > (1u << 30)) return false;
  *magnitude = table_magnitudes(table) + 1 + static_cast<int32_t>(excess);
  return true;
}

// Adds what the alphabet couldn't hold to a block of values that were decoded with level 0 there.
Status restore_escapes(const DecodedBlock& block, const ElementTables& tables,
                       const uint8_t* symbols, bool stochastic, bool accumulate, BitReader* extra) {
  for (int i = 0; i < block.n; ++i) {
    if (symbols[i] != kEscapeSymbol) continue;
    bool negative;
    int32_t k;
    if (!get_escape(extra, tables[i], &negative, &k)) return Status::kCorrupt;
    const float value = block.code.step * level(tables[i], k, stochastic);
    store(negative ? -value : value, accumulate, &block.out[i]);
  }
  return Status::kOk;
}

Status restore_shifted(const DecodedBlock& block, const ElementTables& tables,
                       const uint8_t* symbols, bool accumulate, BitReader* extra) {
  const int shift = block.code.shift;
  const int64_t half = int64_t{1} << (shift - 1);
  for (int i = 0; i < block.n; ++i) {
    int32_t high = symbol_magnitude(symbols[i]);
    bool negative = symbol_negative(symbols[i]);
    if (symbols[i] == kEscapeSymbol && !get_escape(extra, tables[i], &negative, &high))
      return Status::kCorrupt;
    const int64_t signed_high = negative ? -int64_t{high} : int64_t{high};
    const int64_t k = signed_high * (2 * half) + extra->get(shift) - half;
    store(block.code.step * static_cast<float>(k), accumulate, &block.out[i]);
  }
  return Status::kOk;
}

Status decode_trellis_block(const DecodedBlock& block, RansState* s, bool accumulate,
                            BitReader* extra) {
  uint8_t symbols[kBlock], choice[kBlock], used[kBlock];
  const ElementTables tables(block);
  const int shape = block.run->code.shape;
  const int first = shape * tables::kTablesPerShape;
  for (int i = 0; i < block.n; ++i) choice[i] = static_cast<uint8_t>(tables[i] - first);
  s->words = trellis_kernels().decode(s->lanes, s->trellis, trellis_decode_tables(shape), choice,
                                      block.n, s->words, s->words_end, symbols, used);
  if (s->words == nullptr) return Status::kCorrupt;
  kernels().dequantize(symbols, block.n, trellis_level_tables(shape), used, block.code.step,
                       accumulate, block.out);
  for (int i = 0; i < block.n; ++i) {
    if (symbols[i] != kEscapeSymbol) continue;
    bool negative;
    int32_t k;
    if (!get_escape(extra, tables[i], &negative, &k)) return Status::kCorrupt;
    const float value = block.code.step * trellis_level(tables[i], used[i] & 1, k);
    store(negative ? -value : value, accumulate, &block.out[i]);
  }
  return Status::kOk;
}

Status decode_block(const DecodedBlock& block, RansState* s, bool stochastic, bool accumulate,
                    BitReader* extra) {
  uint8_t symbols[kBlock];
  const ElementTables tables(block);
  const int shape = block.run->code.shape;
  s->words = kernels().decode(s->lanes, decode_tables(shape) + tables.base(), tables.choice(),
                              block.n, s->words, s->words_end, symbols);
  if (s->words == nullptr) return Status::kCorrupt;
  if (block.code.shift > 0) return restore_shifted(block, tables, symbols, accumulate, extra);
  kernels().dequantize(symbols, block.n, level_tables(shape, stochastic) + tables.base(),
                       tables.choice(), block.code.step, accumulate, block.out);
  if (memchr(symbols, kEscapeSymbol, static_cast<size_t>(block.n)) == nullptr) return Status::kOk;
  return restore_escapes(block, tables, symbols, stochastic, accumulate, extra);
}

}  // namespace

Status decode_piece_gg(const std::vector<RunPlace>& runs, const PieceInput& piece, bool stochastic,
                       bool trellis, bool accumulate) {
  std::vector<DecodedBlock> blocks;
  blocks.reserve(static_cast<size_t>(piece.end - piece.begin));
  list_blocks(runs, piece, &blocks);
  // A copy: aligned, in host order, and padded so that a vector load at the last word stays inside.
  std::vector<uint16_t> words(size_t{piece.num_words} + kLanes);
  for (size_t i = 0; i < piece.num_words; ++i)
    words[i] = load_le<uint16_t>(piece.data + kLaneBytes + 2 * i);
  RansState s;
  s.words = words.data();
  s.words_end = words.data() + piece.num_words;
  for (int i = 0; i < kLanes; ++i) {
    s.lanes[i] = load_le<uint32_t>(piece.data + 4 * i);
    if (s.lanes[i] < kRansLow || s.lanes[i] >> 31 != 0) return Status::kCorrupt;
  }
  BitReader extra(piece.data + kLaneBytes + 2 * size_t{piece.num_words}, piece.extra_bytes);
  Status status = decode_classes(&s, &blocks, &extra);
  for (size_t b = 0; b < blocks.size() && status == Status::kOk; ++b) {
    if (blocks[b].zero) {
      store_zeros(blocks[b], accumulate);
    } else if (trellis && blocks[b].code.shift == 0) {
      status = decode_trellis_block(blocks[b], &s, accumulate, &extra);
    } else {
      status = decode_block(blocks[b], &s, stochastic, accumulate, &extra);
    }
  }
  if (status != Status::kOk) return status;
  const bool ended =
      std::all_of(s.lanes, s.lanes + kLanes, [](uint32_t x) { return x == kRansLow; });
  return ended && s.words == s.words_end && !extra.overrun() && extra.exhausted()
             ? Status::kOk
             : Status::kCorrupt;
}

Status decode_piece_eg(const std::vector<RunPlace>& runs, const PieceInput& piece, bool stochastic,
                       bool accumulate) {
  std::vector<DecodedBlock> blocks;
  list_blocks(runs, piece, &blocks);
  if (piece.num_words != 0) return Status::kCorrupt;
  BitReader bits(piece.data, piece.extra_bytes);
  ClassRestorer restorer;
  for (DecodedBlock& block : blocks) {
    uint32_t code;
    if (!get_golomb(&bits, 1, &code) || code > 4096) return Status::kCorrupt;
    if (!restorer.next(&block, code == 0, code == 0 ? 0 : unzigzag(code - 1)))
      return Status::kCorrupt;
    if (block.zero) {
      store_zeros(block, accumulate);
      continue;
    }
    const ElementTables element_tables(block);
    const bool integer_levels = stochastic || block.code.shift > 0;
    for (int i = 0; i < block.n; ++i) {
      const int table = element_tables[i];
      const int order = tables::kGolombOrders[table] + block.code.shift;
      if (!get_golomb(&bits, order, &code)) return Status::kCorrupt;
      const int32_t k = unzigzag(code);
      if (k < -(1 << 30) || k > (1 << 30)) return Status::kCorrupt;
      const float value = block.code.step * level(table, k < 0 ? -k : k, integer_levels);
      store(k < 0 ? -value : value, accumulate, &block.out[i]);
    }
  }
  return bits.exhausted() && !bits.overrun() ? Status::kOk : Status::kCorrupt;
}

}  // namespace gct

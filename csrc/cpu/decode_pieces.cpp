#include <algorithm>
#include <cstring>

#include "core/class_code.h"
#include "cpu/block_symbols.h"
#include "cpu/columns.h"
#include "cpu/kernels.h"
#include "cpu/pieces.h"

namespace gct {
namespace {

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
  blocks->resize(static_cast<size_t>(piece.end - piece.begin));
  DecodedBlock* block = blocks->data();
  for (int64_t b = piece.begin; b < piece.end; ++b, ++block) {
    while (b >= run->first_block + num_blocks(run->header->numel)) ++run;
    const int64_t start = (b - run->first_block) * kBlock;
    // In place: a copy reads by halves what was just written by parts, and waits for it.
    block->run = run->header;
    block->out = run->out + start;
    block->n = static_cast<int>(std::min<int64_t>(kBlock, run->header->numel - start));
    block->offsets = block_offsets(run->profile, run->header->columns, b - run->first_block);
  }
}

// Undoes the encoder's prediction; false on a class out of range.
class ClassRestorer {
 public:
  explicit ClassRestorer(float factor) : factor_(factor) {}

  bool next(DecodedBlock* block, bool zero, int delta) {
    if (block->run != run_) predicted_ = block->run->base_class;
    run_ = block->run;
    block->zero = zero;
    if (zero) return true;
    predicted_ += delta;
    if (predicted_ < kMinClass || predicted_ > kMaxClass) return false;
    const bool coded = block_code(run_->code, predicted_, &block->code);
    block->code.step *= factor_;
    return coded;
  }

 private:
  const float factor_;
  const RunHeader* run_ = nullptr;
  int predicted_ = 0;
};

void store(float value, bool accumulate, float* out) { *out = accumulate ? *out + value : value; }

void store_zeros(const DecodedBlock& block, bool accumulate) {
  if (!accumulate) std::fill(block.out, block.out + block.n, 0.0f);
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
                       const uint32_t* escapes, Levels levels, bool accumulate, BitReader* extra) {
  for (const int i : Escapes(escapes, block.n)) {
    bool negative;
    int32_t k;
    if (!get_escape(extra, tables[i], &negative, &k)) return Status::kCorrupt;
    const float value = block.code.step * level(tables[i], k, level_set(levels, block.code));
    store(negative ? -value : value, accumulate, &block.out[i]);
  }
  return Status::kOk;
}

// Values of a block far above the table grid from the high parts of its integers, which have 0 for
// the escapes.
Status restore_shifted(const DecodedBlock& block, const ElementTables& tables,
                       const uint32_t* escapes, bool accumulate, float* high, BitReader* extra) {
  const int shift = block.code.shift;
  const int64_t half = int64_t{1} << (shift - 1);
  uint32_t low[kBlock];
  int begin = 0;
  for (const int i : Escapes(escapes, block.n)) {
    bool negative;
    int32_t magnitude;
    get_low(extra, i - begin, shift, low + begin);
    if (!get_escape(extra, tables[i], &negative, &magnitude)) return Status::kCorrupt;
    const int64_t signed_high = negative ? -int64_t{magnitude} : int64_t{magnitude};
    // All of it in the high part, which may have a fraction: rounded once to a float.
    const int64_t k = signed_high * (2 * half) + extra->get(shift) - half;
    high[i] = static_cast<float>(k) / static_cast<float>(2 * half);
    low[i] = static_cast<uint32_t>(half);
    begin = i + 1;
  }
  get_low(extra, block.n - begin, shift, low + begin);
  kernels().join_low(high, low, block.n, shift, block.code.step, accumulate, block.out);
  return Status::kOk;
}

// One piece of kind gg on its way: its blocks are decoded in order, one by one or side by side with
// another piece's.
class PieceDecoder {
 public:
  PieceDecoder(SymbolForm form, bool accumulate, std::vector<DecodedBlock>* blocks)
      : levels_(form.levels),
        trellis_(form.trellis),
        factor_(form.factor),
        accumulate_(accumulate),
        blocks_(*blocks) {}

  // Lanes and classes. The other members may be called after kOk alone.
  Status begin(const std::vector<RunPlace>& runs, const PieceInput& piece) {
    blocks_.clear();
    list_blocks(runs, piece, &blocks_);
    next_ = 0;
    words_ = piece.data + kLaneBytes;
    words_end_ = words_ + 2 * size_t{piece.num_words};
    for (int i = 0; i < kLanes; ++i) {
      lanes_[i] = load_le<uint32_t>(piece.data + 4 * i);
      if (lanes_[i] < kRansLow || lanes_[i] >> 31 != 0) return Status::kCorrupt;
    }
    extra_ = BitReader(words_end_, piece.extra_bytes);
    return decode_classes();
  }

  // Passes zero blocks; false if there is no block left.
  bool more() {
    for (; next_ < blocks_.size() && blocks_[next_].zero; ++next_)
      store_zeros(blocks_[next_], accumulate_);
    return next_ < blocks_.size();
  }

  // The present block's way through decode_values(), and what comes after it.
  bool whole() const { return blocks_[next_].n == kBlock && one_table(); }
  BlockDecode present(uint32_t* escapes) {
    const DecodedBlock& block = blocks_[next_];
    choose_tables_of(block);
    pad_words();
    BlockDecode result;
    result.states = lanes_;
    result.words = words_;
    result.table = tables_ + block.code.t - tables::kTableMin;
    result.levels = levels_of(block) + block.code.t - tables::kTableMin;
    result.magnitudes = table_magnitudes(block.code.table);
    result.step = block.code.shift > 0 ? 1 : block.code.step;
    result.n = block.n;
    result.out = block.code.shift > 0 ? high_ : block.out;
    result.escapes = escapes;
    // Where the kernel adds its values.
    if (block.code.shift > 0 && accumulate_) std::fill(high_, high_ + kBlock, 0.0f);
    return result;
  }
  Status finish(const BlockDecode& done) {
    words_ = done.words;
    if (words_ > words_end_) return Status::kCorrupt;
    const DecodedBlock& block = blocks_[next_++];
    if (block.code.shift > 0)
      return restore_shifted(block, ElementTables(block), done.escapes, accumulate_, high_,
                             &extra_);
    if (done.any_escape == 0) return Status::kOk;
    return restore_escapes(block, ElementTables(block), done.escapes, levels_, accumulate_,
                           &extra_);
  }

  // The present block alone.
  Status step() {
    uint32_t escapes[kBlock / kLanes];
    if (trellis_ && blocks_[next_].code.shift == 0) return step_by_trellis();
    if (!one_table()) return step_by_symbols(escapes);
    BlockDecode block = present(escapes);
    kernels().decode_values(&block, accumulate_);
    return finish(block);
  }

  // What must hold after the last block.
  bool ended() const {
    return std::all_of(lanes_, lanes_ + kLanes, [](uint32_t x) { return x == kRansLow; }) &&
           words_ == words_end_ && !extra_.overrun() && extra_.exhausted();
  }

 private:
  bool one_table() const { return blocks_[next_].offsets == nullptr && !trellis_; }

  Status decode_classes() {
    ClassRestorer restorer(factor_);
    const RunHeader* run = nullptr;
    const DecodeTable* table = nullptr;
    for (size_t b = 0; b < blocks_.size(); ++b) {
      if (b % kBlock == 0) pad_words();  // a word a block at most
      DecodedBlock& block = blocks_[b];
      if (block.run != run) table = &class_decode_table(block.run->model);
      run = block.run;
      const int symbol = static_cast<int>(rans_get(&lanes_[b % kLanes], table->slot, &words_));
      if (words_ > words_end_) return Status::kCorrupt;
      int delta = symbol - kFirstDelta - tables::kClassDeltaMax;
      uint32_t escaped = 0;
      if (symbol == kClassEscape) {
        if (!get_golomb(&extra_, 3, &escaped) || escaped > 2048) return Status::kCorrupt;
        delta = unzigzag(escaped);
      }
      if (!restorer.next(&block, symbol == kZeroBlock, delta)) return Status::kCorrupt;
    }
    return Status::kOk;
  }

  // A block may use a word an element, and kernels read some more: the last words move to memory
  // that has zeros behind them.
  void pad_words() {
    const size_t left = static_cast<size_t>(words_end_ - words_);
    if (padded_ || left >= kReadable) return;
    memcpy(padding_, words_, left);
    memset(padding_ + left, 0, kReadable);
    words_ = padding_;
    words_end_ = padding_ + left;
    padded_ = true;
  }

  void choose_tables_of(const DecodedBlock& block) {
    if (block.run == run_) return;
    run_ = block.run;
    tables_ = decode_tables(run_->code.shape);
    set_ = -1;
  }

  const LevelTable* levels_of(const DecodedBlock& block) {
    const int set = level_set(levels_, block.code);
    if (set != set_) level_tables_ = level_tables(run_->code.shape, set);
    set_ = set;
    return level_tables_;
  }

  Status step_by_trellis() {
    uint8_t symbols[kBlock], choice[kBlock], used[kBlock];
    const DecodedBlock& block = blocks_[next_++];
    pad_words();
    const ElementTables tables(block);
    const int shape = block.run->code.shape, first = shape * tables::kTablesPerShape;
    for (int i = 0; i < block.n; ++i) choice[i] = static_cast<uint8_t>(tables[i] - first);
    words_ = trellis_kernels().decode(lanes_, states_, trellis_decode_tables(shape), choice,
                                      block.n, words_, symbols, used);
    if (words_ > words_end_) return Status::kCorrupt;
    kernels().dequantize(symbols, block.n, trellis_level_tables(shape), used, block.code.step,
                         accumulate_, block.out);
    for (int i = 0; i < block.n; ++i) {
      if (symbols[i] != kEscapeSymbol) continue;
      bool negative;
      int32_t k;
      if (!get_escape(&extra_, tables[i], &negative, &k)) return Status::kCorrupt;
      const float value = block.code.step * trellis_level(tables[i], used[i] & 1, k);
      store(negative ? -value : value, accumulate_, &block.out[i]);
    }
    return Status::kOk;
  }

  Status step_by_symbols(uint32_t* escapes) {
    uint8_t symbols[kBlock];
    const DecodedBlock& block = blocks_[next_++];
    choose_tables_of(block);
    pad_words();
    const ElementTables tables(block);
    words_ = kernels().decode(lanes_, tables_ + tables.base(), tables.choice(), block.n, words_,
                              symbols);
    if (words_ > words_end_) return Status::kCorrupt;
    const LevelTable* levels = levels_of(block) + tables.base();
    if (block.code.shift > 0) {
      kernels().dequantize(symbols, block.n, levels, tables.choice(), 1, false, high_);
      find_escapes(symbols, block.n, escapes);
      return restore_shifted(block, tables, escapes, accumulate_, high_, &extra_);
    }
    kernels().dequantize(symbols, block.n, levels, tables.choice(), block.code.step, accumulate_,
                         block.out);
    if (memchr(symbols, kEscapeSymbol, static_cast<size_t>(block.n)) == nullptr) return Status::kOk;
    find_escapes(symbols, block.n, escapes);
    return restore_escapes(block, tables, escapes, levels_, accumulate_, &extra_);
  }

  static constexpr size_t kReadable = 2 * (kBlock + kLanes);  // bytes that a block's step may read

  const Levels levels_;
  const bool trellis_;
  const float factor_;
  const bool accumulate_;
  std::vector<DecodedBlock>& blocks_;
  size_t next_ = 0;
  uint32_t lanes_[kLanes];
  uint8_t states_[kLanes] = {};  // of the trellis
  const uint8_t* words_ = nullptr;
  const uint8_t* words_end_ = nullptr;
  BitReader extra_{nullptr, 0};
  const RunHeader* run_ = nullptr;  // whose tables these are
  const DecodeTable* tables_ = nullptr;
  int set_ = -1;  // of level_tables_
  const LevelTable* level_tables_ = nullptr;
  float high_[kBlock];  // of the present block's integers, where low bits stand aside
  bool padded_ = false;
  uint8_t padding_[2 * kReadable];
};

Status decode_rest(PieceDecoder* piece) {
  Status status = Status::kOk;
  while (status == Status::kOk && piece->more()) status = piece->step();
  if (status != Status::kOk) return status;
  return piece->ended() ? Status::kOk : Status::kCorrupt;
}

}  // namespace

Status decode_piece_gg(const std::vector<RunPlace>& runs, const PieceInput& piece, SymbolForm form,
                       bool accumulate, PieceScratch* scratch) {
  PieceDecoder decoder(form, accumulate, &scratch->blocks[0]);
  const Status status = decoder.begin(runs, piece);
  return status == Status::kOk ? decode_rest(&decoder) : status;
}

Status decode_two_pieces_gg(const std::vector<RunPlace>& runs, const PieceInput* pieces,
                            SymbolForm form, bool accumulate, PieceScratch* scratch) {
  PieceDecoder a(form, accumulate, &scratch->blocks[0]);
  PieceDecoder b(form, accumulate, &scratch->blocks[1]);
  Status status = a.begin(runs, pieces[0]);
  if (status == Status::kOk) status = b.begin(runs, pieces[1]);
  uint32_t escapes[2][kBlock / kLanes];
  while (status == Status::kOk && a.more() && b.more()) {
    if (!a.whole() || !b.whole()) {
      status = (a.whole() ? b : a).step();
      continue;
    }
    BlockDecode blocks[2] = {a.present(escapes[0]), b.present(escapes[1])};
    kernels().decode_pair(blocks, accumulate);
    status = a.finish(blocks[0]);
    if (status == Status::kOk) status = b.finish(blocks[1]);
  }
  if (status == Status::kOk) status = decode_rest(&a);
  return status == Status::kOk ? decode_rest(&b) : status;
}

Status decode_piece_eg(const std::vector<RunPlace>& runs, const PieceInput& piece, SymbolForm form,
                       bool accumulate, PieceScratch* scratch) {
  std::vector<DecodedBlock>& blocks = scratch->blocks[0];
  blocks.clear();
  list_blocks(runs, piece, &blocks);
  if (piece.num_words != 0) return Status::kCorrupt;
  BitReader bits(piece.data, piece.extra_bytes);
  ClassRestorer restorer(form.factor);
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
    const int set = level_set(form.levels, block.code);
    for (int i = 0; i < block.n; ++i) {
      const int table = element_tables[i];
      const int order = tables::kGolombOrders[table] + block.code.shift;
      if (!get_golomb(&bits, order, &code)) return Status::kCorrupt;
      const int32_t k = unzigzag(code);
      if (k < -(1 << 30) || k > (1 << 30)) return Status::kCorrupt;
      const float value = block.code.step * level(table, k < 0 ? -k : k, set);
      store(k < 0 ? -value : value, accumulate, &block.out[i]);
    }
  }
  return bits.exhausted() && !bits.overrun() ? Status::kOk : Status::kCorrupt;
}

}  // namespace gct

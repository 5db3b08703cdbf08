// Choice of implementation, messages, and the Workspace.
#include "codec.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"
#include "cpu/pieces.h"
#include "cpu/scratch.h"

namespace gct {
namespace {

std::atomic<const Kernels*> chosen{nullptr};

const Kernels* find_kernels(const std::string& name) {
  int count;
  const Kernels* const* all = usable_kernels(&count);
  for (int i = 0; i < count; ++i) {
    if (name == all[i]->name) return all[i];
  }
  return nullptr;
}

// The best one, or the one that GCT_FORCE_IMPL names.
const Kernels* first_choice() {
  int count;
  const Kernels* best = usable_kernels(&count)[0];
  const char* forced = std::getenv("GCT_FORCE_IMPL");
  if (forced == nullptr || *forced == '\0') return best;
  const Kernels* k = find_kernels(forced);
  if (k != nullptr) return k;
  std::string usable;
  for (const std::string& name : implementations()) usable += (usable.empty() ? "" : ", ") + name;
  throw std::runtime_error(
      "gct: GCT_FORCE_IMPL must name an implementation usable on this machine (" + usable +
      "), got " + forced);
}

}  // namespace

const Kernels* const* usable_kernels(int* count) {
  struct List {
    const Kernels* entries[4];
    int count = 0;
    List() {
      for (const Kernels* k :
           {avx512_kernels(), avx2_kernels(), neon_kernels(), scalar_kernels()}) {
        if (k != nullptr) entries[count++] = k;
      }
    }
  };
  static const List list;
  *count = list.count;
  return list.entries;
}

const Kernels& kernels() {
  const Kernels* k = chosen.load(std::memory_order_relaxed);
  if (k == nullptr) {
    k = first_choice();
    chosen.store(k, std::memory_order_relaxed);
  }
  return *k;
}

std::vector<std::string> implementations() {
  int count;
  const Kernels* const* all = usable_kernels(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(all[i]->name);
  return names;
}

std::string implementation() { return kernels().name; }

bool set_implementation(const std::string& name) {
  const Kernels* k = find_kernels(name);
  if (k != nullptr) chosen.store(k, std::memory_order_relaxed);
  return k != nullptr;
}

const char* status_message(Status status) {
  switch (status) {
    case Status::kOk:
      return "no error";
    case Status::kBadArgument:
      return "codec parameters or input out of range";
    case Status::kTooSmall:
      return "the output buffer is too small for the encoded segment";
    case Status::kBadMagic:
      return "these bytes are not a gct segment: expected it to begin with 'GCT1'";
    case Status::kBadVersion:
      return "segment of another wire version: expected version 1, 2 or 3; read it with the gct "
             "version that wrote it, and install the same one on all ranks";
    case Status::kBadTables:
      return "segment written with other code tables: read it with the gct version that wrote it, "
             "and install the same one on all ranks";
    case Status::kBadHeader:
      return "segment header out of range or contradicting itself: the bytes were altered on the "
             "way";
    case Status::kTruncated:
      return "segment ends before its end: expected its header, 40 bytes, and as many as the "
             "header says";
    case Status::kCorrupt:
      return "segment payload does not decode to the announced elements: the bytes were altered on "
             "the way";
    case Status::kSizeMismatch:
      return "segment holds another number of elements than expected: all ranks must pass tensors "
             "of one size";
    case Status::kUnsupported:
      return "segment of kind eg or effort high, or with column profiles or low-rank parts, which "
             "GPUs don't decode: decode it on the CPU, or encode with kind gg, effort normal and "
             "allocation 1, or on a GPU";
  }
  return "unknown status";
}

Workspace::Workspace() = default;
Workspace::~Workspace() = default;

std::vector<PieceOutput>& Workspace::outputs() {
  if (outputs_ == nullptr) outputs_ = std::make_unique<std::vector<PieceOutput>>();
  return *outputs_;
}

Scratch& Workspace::scratch() {
  if (scratch_ == nullptr) scratch_ = std::make_unique<Scratch>();
  return *scratch_;
}

size_t Workspace::capacity_bytes() const {
  size_t total = classes.capacity() * sizeof(int16_t) + block_mean.capacity() * sizeof(float) +
                 block_square.capacity() * sizeof(float) + run_stats.capacity() * sizeof(RunStats) +
                 profiles.capacity() + residuals.capacity() * sizeof(float);
  if (scratch_ != nullptr) total += scratch_->capacity_bytes();
  if (outputs_ == nullptr) return total;
  for (const PieceOutput& p : *outputs_)
    total += p.words.capacity() * 2 + p.extra.capacity() + p.symbols.capacity() +
             p.tables.capacity() + p.blocks.capacity() * sizeof(CodedBlock) +
             p.coders.capacity() * sizeof(ClassCoder) + p.escapes.capacity() * 4 +
             sizeof(PieceOutput);
  return total;
}

}  // namespace gct

#include "torch/link.h"

#include <chrono>
#include <numeric>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

namespace gct {

namespace {

// How long a wait may go on after close(). Each period costs one exception inside torch while a
// peer is slow.
constexpr std::chrono::milliseconds kPatience{500};

// Each bit as two of three copies have it, or as the only one has it.
int64_t read_size(const uint8_t* p, int copies) {
  const auto a = load_le<uint64_t>(p);
  if (copies == 1) return static_cast<int64_t>(a);
  const auto b = load_le<uint64_t>(p + sizeof a);
  const auto c = load_le<uint64_t>(p + 2 * sizeof a);
  return static_cast<int64_t>((a & b) | (a & c) | (b & c));
}

int64_t total(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

}  // namespace

Link::Link(const std::string& group_name) {
  if (group_name.empty()) return;
  group_ = c10d::resolve_process_group(group_name);
  backend_ = group_->getBackend(c10::DeviceType::CPU);
  rank_ = group_->getRank();
  size_ = group_->getSize();
}

void Link::start(Exchange& exchange) {
  const int64_t sent = total(exchange.send_bytes);
  const int64_t received = total(exchange.recv_bytes);
  exchange.recv.reserve(received);
  at::Tensor send = exchange.send.view(sent);
  at::Tensor recv = exchange.recv.view(received);
  // Copies: Gloo empties its arguments. The backend itself: ProcessGroup's name for this collective
  // has changed between versions of torch.
  std::vector<int64_t> send_bytes = exchange.send_bytes;
  std::vector<int64_t> recv_bytes = exchange.recv_bytes;
  exchange.work = backend_->alltoall_base(recv, send, recv_bytes, send_bytes);
  sent_bytes_.fetch_add(sent);
}

void Link::wait(Exchange& exchange) {
  for (;;) {
    if (closed_.load()) throw Closed();
    try {
      exchange.work->wait(kPatience);
      break;
    } catch (const std::exception&) {
      // Either our patience or the collective came to its end; only the second is an error.
      if (!exchange.work->isCompleted()) continue;
      if (exchange.work->exception()) throw;
      break;
    }
  }
  exchange.work.reset();
}

void Link::exchange_sizes(Exchange& exchange, bool thrice) {
  const auto world = static_cast<size_t>(size_);
  const int copies = thrice ? 3 : 1;
  sizes_.send_bytes.assign(world, copies * int64_t{sizeof(int64_t)});
  sizes_.send_bytes[static_cast<size_t>(rank_)] = 0;
  sizes_.recv_bytes = sizes_.send_bytes;
  uint8_t* out = sizes_.send.reserve(size_ * copies * int64_t{sizeof(int64_t)});
  for (size_t rank = 0; rank < world; ++rank) {
    if (static_cast<int>(rank) == rank_) continue;
    for (int copy = 0; copy < copies; ++copy, out += sizeof(int64_t)) {
      store_le<uint64_t>(out, static_cast<uint64_t>(exchange.send_bytes[rank]));
    }
  }
  start(sizes_);
  wait(sizes_);
  exchange.recv_bytes.assign(world, 0);
  const uint8_t* in = sizes_.recv.data();
  for (size_t rank = 0; rank < world; ++rank) {
    if (static_cast<int>(rank) == rank_) continue;
    exchange.recv_bytes[rank] = read_size(in, copies);
    in += copies * sizeof(int64_t);
  }
}

}  // namespace gct

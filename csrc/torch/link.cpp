#include "torch/link.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <utility>

namespace gct {

namespace {

constexpr int kNeverSent = 2;  // a tag that no link uses
constexpr int kCopies = 3;     // of a size
constexpr int64_t kSizeBytes = kCopies * int64_t{sizeof(int64_t)};

// Each bit as two of three copies have it.
int64_t read_size(const uint8_t* p) {
  const auto a = load_le<uint64_t>(p);
  const auto b = load_le<uint64_t>(p + sizeof a);
  const auto c = load_le<uint64_t>(p + 2 * sizeof a);
  return static_cast<int64_t>((a & b) | (a & c) | (b & c));
}

int64_t total(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

}  // namespace

// A wait that runs out of time closes all of a Gloo context's connections.
void hang_up(c10d::Backend& gloo) {
  for (int distance = 1; distance < gloo.getSize(); ++distance) {
    std::vector<at::Tensor> nothing{at::empty({1}, at::TensorOptions().dtype(at::kByte))};
    try {
      gloo.recv(nothing, (gloo.getRank() + distance) % gloo.getSize(), kNeverSent)
          ->wait(std::chrono::milliseconds(1));
    } catch (const std::exception&) {
      // The end of that time; or this connection was lost already, perhaps alone.
    }
  }
}

Link::Link(const std::string& upward, const std::string& downward, int tag, WireThread* wire)
    : tag_(tag), wire_(wire) {
  if (upward.empty()) return;
  up_group_ = c10d::resolve_process_group(upward);
  down_group_ = c10d::resolve_process_group(downward);
  up_ = up_group_->getBackend(c10::DeviceType::CPU);
  down_ = down_group_->getBackend(c10::DeviceType::CPU);
  rank_ = up_group_->getRank();
  size_ = up_group_->getSize();
  // Not Gloo's all-to-all: it tells its peers that it waits for them after it has sent to them, so
  // that they hear of it behind a whole segment; on a slow link that takes as long again. And not
  // both ways over one connection: Gloo's receiving thread spins while another one sends on it.
}

void Link::expect(Exchange& exchange) {
  if (exchange.recv_to.empty()) exchange.recv.reserve(total(exchange.recv_bytes));
  exchange.expected = true;
  post(exchange, &Link::post_receives);
}

void Link::start(Exchange& exchange) {
  if (!exchange.expected) expect(exchange);
  exchange.expected = false;
  sent_bytes_.fetch_add(total(exchange.send_bytes));
  post(exchange, &Link::post_sends);
}

void Link::post(Exchange& exchange, void (Link::*half)(Exchange&)) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++exchange.posting;
  }
  wire_->post([this, &exchange, half] {
    std::exception_ptr error;
    try {
      (this->*half)(exchange);
    } catch (...) {  // a peer that is gone, or Closed: for the thread that waits
      error = std::current_exception();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    if (!exchange.error) exchange.error = error;
    --exchange.posting;
    posted_.notify_all();
  });
}

void Link::post_receives(Exchange& exchange) {
  int64_t begin = 0;
  for (int sender = 0; sender < size_; ++sender) {
    const int64_t bytes = exchange.recv_bytes[static_cast<size_t>(sender)];
    std::vector<at::Tensor> part{exchange.to_receive(sender, begin)};
    if (bytes > 0) keep(exchange, way(sender, rank_).recv(part, sender, tag_));
    begin += bytes;
  }
}

void Link::post_sends(Exchange& exchange) {
  // Every rank begins with another peer, so that not all send to the same one.
  for (int distance = 1; distance < size_; ++distance) {
    const int receiver = (rank_ + distance) % size_;
    const auto part = exchange.send_bytes.begin() + receiver;
    const int64_t begin = std::accumulate(exchange.send_bytes.begin(), part, int64_t{0});
    std::vector<at::Tensor> segment{exchange.to_send(receiver, begin)};
    if (*part > 0) keep(exchange, way(rank_, receiver).send(segment, receiver, tag_));
  }
}

void Link::wait(Exchange& exchange) {
  wait_until_posted(exchange);
  for (const Work& work : exchange.works) {
    if (!work->wait()) throw Closed();
    forget(work);
  }
  exchange.works.clear();
}

void Link::wait_until_posted(Exchange& exchange) {
  std::unique_lock<std::mutex> lock(mutex_);
  posted_.wait(lock, [&] { return exchange.posting == 0; });
  if (exchange.error) std::rethrow_exception(std::exchange(exchange.error, nullptr));
}

void Link::keep(Exchange& exchange, Work work) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) throw Closed();
  pending_.push_back(work);
  exchange.works.push_back(std::move(work));
}

void Link::forget(const Work& work) {
  std::lock_guard<std::mutex> lock(mutex_);
  pending_.erase(std::find(pending_.begin(), pending_.end(), work));
}

void Link::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  for (const Work& work : pending_) work->abort();
}

void Link::hang_up() {
  if (size_ == 1) return;
  gct::hang_up(*up_);
  gct::hang_up(*down_);
}

void Link::exchange_sizes(Exchange& exchange) {
  const auto world = static_cast<size_t>(size_);
  sizes_.send_bytes.assign(world, kSizeBytes);
  sizes_.send_bytes[static_cast<size_t>(rank_)] = 0;
  sizes_.recv_bytes = sizes_.send_bytes;
  uint8_t* out = sizes_.send.reserve(size_ * kSizeBytes);
  for (size_t rank = 0; rank < world; ++rank) {
    if (static_cast<int>(rank) == rank_) continue;
    for (int copy = 0; copy < kCopies; ++copy, out += sizeof(int64_t)) {
      store_le<uint64_t>(out, static_cast<uint64_t>(exchange.send_bytes[rank]));
    }
  }
  start(sizes_);
  wait(sizes_);
  exchange.recv_bytes.assign(world, 0);
  const uint8_t* in = sizes_.recv.data();
  for (size_t rank = 0; rank < world; ++rank) {
    if (static_cast<int>(rank) == rank_) continue;
    exchange.recv_bytes[rank] = read_size(in);
    in += kSizeBytes;
  }
}

}  // namespace gct

#include "torch/agreement.h"

#include <cstring>

#include "torch/float_ops.h"

namespace gct {

namespace {

constexpr size_t kTextBytes = 256;  // of a call, where they differ; the rest is cut off

uint64_t hash_text(const std::string& text) {
  return hash_bytes(text.data(), static_cast<int64_t>(text.size()));
}

std::string trimmed(const std::string& text) { return text.substr(0, text.find('\0')); }

}  // namespace

void Agreement::tell(const void* message, int64_t bytes, Link& link) {
  exchange_.send_bytes.assign(static_cast<size_t>(link.size()), bytes);
  exchange_.send_bytes[static_cast<size_t>(link.rank())] = 0;
  exchange_.recv_bytes = exchange_.send_bytes;
  uint8_t* out = exchange_.send.reserve((link.size() - 1) * bytes);
  for (int other = 1; other < link.size(); ++other, out += bytes) {
    memcpy(out, message, static_cast<size_t>(bytes));
  }
  link.start(exchange_);
}

void Agreement::start(const std::string& call, Link& link) {
  mine_ = call;
  const uint64_t hash = hash_text(mine_);
  static_assert(sizeof hash == kBytes);
  tell(&hash, kBytes, link);
}

std::string Agreement::finish(Link& link) {
  link.wait(exchange_);
  const uint64_t mine = hash_text(mine_);
  bool same = true;
  for (int other = 0; other < link.size() - 1; ++other) {
    same = same && memcmp(exchange_.recv.data() + other * kBytes, &mine, kBytes) == 0;
  }
  // Whoever isn't like all others is unlike one at least: all ranks come to the same decision.
  return same ? "" : explain(link);
}

std::string Agreement::explain(Link& link) {
  std::string text = mine_;
  text.resize(kTextBytes, '\0');
  tell(text.data(), int64_t{kTextBytes}, link);
  link.wait(exchange_);
  const auto* in = reinterpret_cast<const char*>(exchange_.recv.data());
  std::string message = "gct: all ranks must make the same call, but rank " +
                        std::to_string(link.rank()) + " calls " + trimmed(text);
  for (int sender = 0; sender < link.size(); ++sender) {
    if (sender == link.rank()) continue;
    const std::string other(in, kTextBytes);
    in += kTextBytes;
    if (other == text) continue;
    message += " and rank " + std::to_string(sender) + " calls " + trimmed(other);
    break;
  }
  return message + "; nothing was sent";
}

}  // namespace gct

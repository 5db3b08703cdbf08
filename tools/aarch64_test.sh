#!/usr/bin/env bash
# The C++ tests built for aarch64 and run by qemu: the NEON kernels give the scalar ones' bytes. tools/aarch64_test.sh FOLDER
# On Debian and its kin, as root, installs the compiler and the emulator where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v aarch64-linux-gnu-g++ > /dev/null || ! command -v qemu-aarch64 > /dev/null; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo 'No aarch64-linux-gnu-g++ with qemu-aarch64 here, and only root with apt-get could install them: Debian has them as' >&2
    echo 'g++-aarch64-linux-gnu and qemu-user.' >&2
    exit 1
  fi
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends --yes g++-aarch64-linux-gnu qemu-user > /dev/null
fi
tools/cpp_test.sh "$1" -DGCT_DEV=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu'

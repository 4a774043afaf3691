#!/bin/sh
# build.sh builds the pause programs that package pause embeds. It needs gcc with
# binutils for both architectures (Debian: gcc, gcc-aarch64-linux-gnu).
set -eu
cd "$(dirname "$0")"
build() {
	"$1-gcc" -Os -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables -fno-unwind-tables \
		-fno-pic -no-pie -static -nostdlib -Wall -Wextra -Werror "$3" \
		-Wl,--build-id=none,-z,noexecstack,-z,noseparate-code -o "../$2" pause.c
	"$1-strip" -s -R .comment -R .note.gnu.property "../$2"
}
build x86_64-linux-gnu pause_amd64 -fcf-protection=none
build aarch64-linux-gnu pause_arm64 -mbranch-protection=none

// Package machine says what the worker's machine has for tasks.
package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"runtime"

	"github.com/shirou/gopsutil/v4/mem"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// nanoPerCore is the number of CPU units in a core.
const nanoPerCore = 1_000_000_000

// Resources returns the machine's cores and memory. Cores are those that this
// process may run on.
func Resources(ctx context.Context) (*musterv1.Resources, error) {
	memory, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the machine's memory: %w", err)
	}
	return &musterv1.Resources{
		NanoCpus:    int64(runtime.NumCPU()) * nanoPerCore,
		MemoryBytes: int64(min(memory.Total, math.MaxInt64)),
	}, nil
}

// Platform returns the machine's operating system and architecture.
func Platform() *musterv1.Platform {
	return &musterv1.Platform{Os: runtime.GOOS, Architecture: runtime.GOARCH}
}

// Hostname returns the machine's name.
func Hostname() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("ask for the host name: %w", err)
	}
	return name, nil
}

const (
	// bootID is made by the kernel at each start. Unlike /etc/machine-id it differs
	// between machines that were copied, and between images of containers it does
	// not.
	bootID = "/proc/sys/kernel/random/boot_id"
	// idBytes is the length of an id before it is written in hexadecimal.
	idBytes = 8
)

// ID returns an id that is the same for all processes on the machine and in the network
// namespace of the given process ("self", "1"), until the machine starts again. It is
// empty where the kernel does not tell.
func ID(process string) string {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return ""
	}
	namespace, err := os.Readlink("/proc/" + process + "/ns/net")
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(append(boot, namespace...))
	return hex.EncodeToString(sum[:idBytes])
}

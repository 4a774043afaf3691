package state

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// idLength is the length of SwarmKit's ids: 25 digits of base 36 hold 129 bits.
const idLength = 25

// ClusterID is the id and the key of the only cluster.
const ClusterID = "default"

// NewID returns a random id of 25 characters in base 36, like SwarmKit's ids.
func NewID() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	// Bytes of this value or above would make some digits more likely than others.
	const most = 256 / len(digits) * len(digits)
	id := make([]byte, 0, idLength)
	var random [32]byte
	for {
		// Read never fails since Go 1.24.
		_, _ = rand.Read(random[:])
		for _, b := range random {
			if int(b) >= most {
				continue
			}
			if id = append(id, digits[int(b)%len(digits)]); len(id) == idLength {
				return string(id)
			}
		}
	}
}

// Digest identifies a task spec by its content: the first 16 bytes of the SHA-256 of its
// deterministic encoding. The encoding is stable only within one version of Muster.
// Different digests of equal specs are harmless, because package specdiff decides
// whether tasks are replaced.
func Digest(spec *musterv1.TaskSpec) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("digest of task spec: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:16], nil
}

// SpecKey returns the key of a task spec in table specs.
func SpecKey(digest []byte) string { return hex.EncodeToString(digest) }

// RemovedNameKey returns the key under which the name of a removed service is kept.
func RemovedNameKey(service string) string { return NameKey(removedService, service) }

// RemovedService returns the id of the removed service from a key of RemovedNameKey.
func RemovedService(key string) (id string, ok bool) {
	return strings.CutSuffix(key, "/"+removedService)
}

const removedService = "removed-service"

// NameKey returns the key that makes a name unique within its kind, ignoring case.
func NameKey(kind, name string) string { return strings.ToLower(name) + "/" + kind }

// TaskKey returns the key of a task of a slot, or of a node if slot is 0.
func TaskKey(service string, slot uint64, node, task string) string {
	if slot == 0 {
		return service + "/" + node + "/" + task
	}
	return service + "/" + SlotSegment(slot) + "/" + task
}

// SlotSegment formats a slot so that keys sort by slot.
func SlotSegment(slot uint64) string {
	s := strconv.FormatUint(slot, 10)
	if len(s) < 8 {
		s = "00000000"[len(s):] + s
	}
	return s
}

// NodeTaskKey returns the key of a task's assignment and of its status.
func NodeTaskKey(node, service, task string) string {
	return node + "/" + service + "/" + task
}

// SplitKey returns the three segments of a key of tasks, assignments or statuses.
func SplitKey(key string) (first, second, third string) {
	first, rest, _ := strings.Cut(key, "/")
	second, third, _ = strings.Cut(rest, "/")
	return first, second, third
}

// PlacementKey returns the key of the explanation why tasks of one spec wait.
func PlacementKey(service string, digest []byte) string {
	return service + "/" + hex.EncodeToString(digest)
}

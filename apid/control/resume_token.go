package control

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/store"
)

// A resume token holds a version, the numbers of a point, and a checksum that tells
// a token from a typing error. Any replica can read it.
const (
	// resumeNamed begins tokens that name each table before its numbers, so that
	// versions of apid with other tables can read them.
	resumeNamed = 2
	// resumeFixed begins tokens of earlier versions, which list the numbers of
	// fixedTables in their order.
	resumeFixed = 1
)

// errUnknownForm says that a token is intact and was made by a later version.
var errUnknownForm = errors.New("resume token of an unknown version")

// fixedTables are the tables in tokens of version resumeFixed.
func fixedTables() []string {
	return []string{
		"services", "nodes", "clusters", "tasks", "rollouts", "endpoints", "assignments", "placements", "nodestates", "statuses",
	}
}

// resumeToken writes a point.
func resumeToken(p objects.Point) string {
	b := []byte{resumeNamed}
	for table, numbers := range p.Sequences() {
		b = binary.AppendUvarint(b, uint64(len(table)))
		b = append(b, table...)
		b = binary.AppendUvarint(b, uint64(len(numbers)))
		for _, n := range numbers {
			b = binary.AppendUvarint(b, n)
		}
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseResumeToken returns the sequence numbers of each table that a token names.
func parseResumeToken(token string) (map[string][]uint64, error) {
	wrong := validate.Field("resumeToken", "is not a token of a watch")
	if len(token) > maxToken {
		return nil, wrong
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < 5 {
		return nil, wrong
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return nil, wrong
	}
	r := tokenReader{b: body[1:]}
	sequences := map[string][]uint64{}
	switch body[0] {
	case resumeNamed:
		for len(r.b) > 0 && !r.bad {
			table := string(r.take(r.uvarint()))
			sequences[table] = r.numbers(r.uvarint())
		}
	case resumeFixed:
		for _, table := range fixedTables() {
			sequences[table] = r.numbers(store.Shards)
		}
	default:
		return nil, errUnknownForm
	}
	if r.bad || len(r.b) > 0 {
		return nil, wrong
	}
	return sequences, nil
}

// tokenReader reads a token from the front, until it is bad.
type tokenReader struct {
	b   []byte
	bad bool
}

func (r *tokenReader) uvarint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *tokenReader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

// numbers reads n numbers, of which each takes a byte at least.
func (r *tokenReader) numbers(n uint64) []uint64 {
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return nil
	}
	list := make([]uint64, n)
	for i := range list {
		list[i] = r.uvarint()
	}
	return list
}

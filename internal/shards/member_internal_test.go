package shards

import (
	"testing"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// FuzzDecode decodes records of members and locks as other processes may write them.
func FuzzDecode(f *testing.F) {
	for _, value := range []string{
		`{"instance":"a","daemon":"apid","address":"h:1","started":"2026-01-01T00:00:00Z","since":"2026-01-01T00:00:00Z"}`, `{}`, `null`, `[]`, `{"instance":7}`, `{"since":"never"}`, "",
	} {
		f.Add("7", []byte(value))
		f.Add("x/y", []byte(value))
	}
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		prefix := locksPrefix("muster", "scheduler")
		pairs := []kv.Pair{{Key: prefix + name, Value: value, Session: "s"}, {Key: prefix + "gone", Value: value}}
		locks := decode[Lease](pairs, prefix, zap.NewNop())
		if members := decode[Member](pairs, prefix, zap.NewNop()); len(members) > 1 || len(locks) > 1 || len(byShard(locks)) > 1 {
			t.Errorf("one record decoded to %d members and %d locks", len(members), len(locks))
		}
	})
}

package apid_test

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// readToken returns the tables that a resume token names, in their order, and the
// sequence numbers of each.
func readToken(t *testing.T, token string) (tables []string, numbers map[string][]uint64) {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || b[0] != 2 {
		t.Fatalf("token %q: %v", token, err)
	}
	b = b[1 : len(b)-4]
	uvarint := func() uint64 {
		n, size := binary.Uvarint(b)
		b = b[size:]
		return n
	}
	numbers = map[string][]uint64{}
	for len(b) > 0 {
		size := uvarint()
		table := string(b[:size])
		b = b[size:]
		for range uvarint() {
			numbers[table] = append(numbers[table], uvarint())
		}
		tables = append(tables, table)
	}
	return tables, numbers
}

// checksummed ends a token with its checksum.
func checksummed(b []byte) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

// namedToken writes a token as this version does.
func namedToken(tables []string, numbers map[string][]uint64) string {
	b := []byte{2}
	for _, table := range tables {
		b = append(binary.AppendUvarint(b, uint64(len(table))), table...)
		b = binary.AppendUvarint(b, uint64(len(numbers[table])))
		for _, n := range numbers[table] {
			b = binary.AppendUvarint(b, n)
		}
	}
	return checksummed(b)
}

// fixedToken writes a token as apid 0.1 did: the numbers of ten tables.
func fixedToken(numbers map[string][]uint64) string {
	b := []byte{1}
	for _, table := range []string{
		"services", "nodes", "clusters", "tasks", "rollouts", "endpoints", "assignments", "placements", "nodestates", "statuses",
	} {
		for _, n := range numbers[table] {
			b = binary.AppendUvarint(b, n)
		}
	}
	return checksummed(b)
}

// without returns the tables that are not table.
func without(tables []string, table string) []string {
	return slices.DeleteFunc(slices.Clone(tables), func(other string) bool { return other == table })
}

func TestResumeTokensOfOtherVersionsContinue(t *testing.T) {
	t.Parallel()
	for name, token := range map[string]func(tables []string, numbers map[string][]uint64) string{
		"tables in fixed order": func(_ []string, numbers map[string][]uint64) string { return fixedToken(numbers) },
		"a table that did not exist and is empty": func(tables []string, numbers map[string][]uint64) string {
			return namedToken(without(tables, "clusters"), numbers)
		},
		"a table that is not known here": func(tables []string, numbers map[string][]uint64) string {
			numbers["later"] = make([]uint64, 4)
			return namedToken(append(tables, "later"), numbers)
		},
		"tables in another order": func(tables []string, numbers map[string][]uint64) string {
			return namedToken(append(without(tables, "services"), "services"), numbers)
		},
	} {
		subtest(t, name, func(t *testing.T) {
			a := newCluster(t).apid()
			a.create(webSpec("before"))
			tables, numbers := readToken(t, a.watch(&musterv1.WatchRequest{}).token)
			s := a.create(webSpec("web"))
			if _, err := a.UpdateCluster(t.Context(), &musterv1.UpdateClusterRequest{Spec: &musterv1.ClusterSpec{}}); err != nil {
				t.Fatal(err)
			}
			w, err := a.tryWatch(&musterv1.WatchRequest{ResumeToken: token(tables, numbers)})
			if err != nil {
				t.Fatal(err)
			}
			w.until("the service", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_SERVICE, s.Id))
		})
	}
}

// A replica that starts later does not know when the records of a table were written
// that the token does not name.
func TestResumeTokensThatCannotContinue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		a.create(webSpec("web"))
		if _, err := a.UpdateCluster(t.Context(), &musterv1.UpdateClusterRequest{Spec: &musterv1.ClusterSpec{}}); err != nil {
			t.Fatal(err)
		}
		b := c.apid()
		tables, numbers := readToken(t, b.watch(&musterv1.WatchRequest{}).token)
		numbers["services"] = append(slices.Clone(numbers["services"]), 0)
		for name, token := range map[string]string{
			"a table that did not exist and has records": namedToken(without(tables, "clusters"), numbers),
			"a table with another number of shards":      namedToken(tables, numbers),
			"a later version":                            checksummed([]byte{3}),
		} {
			_, err := b.tryWatch(&musterv1.WatchRequest{ResumeToken: token})
			t.Log(name)
			wantCode(t, err, codes.OutOfRange)
		}
	})
}

func TestMalformedResumeTokensAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		for name, token := range map[string]string{
			"no checksum":        base64.RawURLEncoding.EncodeToString([]byte{2, 1, 'x', 0, 0, 0, 0}),
			"cut in a number":    checksummed([]byte{2, 1, 'x', 2, 1, 0x80}),
			"cut in a name":      checksummed([]byte{2, 9, 'x'}),
			"count without ends": checksummed([]byte{2, 1, 'x', 0xff, 0xff, 0xff, 0xff, 0x7f}),
			"too few numbers":    checksummed([]byte{1, 0, 0}),
		} {
			_, err := a.tryWatch(&musterv1.WatchRequest{ResumeToken: token})
			t.Log(name)
			wantCode(t, err, codes.InvalidArgument, "resumeToken")
		}
	})
}

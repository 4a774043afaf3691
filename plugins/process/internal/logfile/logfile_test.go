package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func create(t *testing.T, dir string, max int64) *Writer {
	t.Helper()
	w, err := Create(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func texts(t *testing.T, dir string, query Query) []string {
	t.Helper()
	var got []string
	if err := Read(t.Context(), dir, query, func(line Line) error {
		got = append(got, string(line.Data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCopySplitsIntoLines(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", MaxLine)
	dir := t.TempDir()
	w := create(t, dir, 1<<20)
	w.Copy(Stdout, strings.NewReader("one\n\n\xff\r\n"+long+"dropped\n"+long+"\nend without newline"))
	want := []string{"one", "", "\xff\r", long, long, "end without newline"}
	if diff := cmp.Diff(want, texts(t, dir, Query{})); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestQueries(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := create(t, dir, 1<<20)
	for i := range 10 {
		stream := Stdout
		if i%2 == 1 {
			stream = Stderr
		}
		w.Write(Line{Time: epoch.Add(time.Duration(i) * time.Second), Stream: stream, Data: fmt.Append(nil, i)})
	}
	for name, test := range map[string]struct {
		query Query
		want  string
	}{
		"all":             {Query{}, "0123456789"},
		"stderr":          {Query{Wants: func(s Stream) bool { return s == Stderr }}, "13579"},
		"since":           {Query{Since: epoch.Add(7 * time.Second)}, "789"},
		"tail":            {Query{Tail: 3}, "789"},
		"long tail":       {Query{Tail: 30}, "0123456789"},
		"tail of a part":  {Query{Tail: 2, Since: epoch, Wants: func(s Stream) bool { return s == Stdout }}, "68"},
		"nothing":         {Query{Since: epoch.Add(time.Hour), Tail: 2}, ""},
		"ended, followed": {Query{Tail: 1, Ended: func() (bool, error) { return true, nil }}, "9"},
	} {
		if got := strings.Join(texts(t, dir, test.query), ""); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if got := texts(t, t.TempDir(), Query{}); got != nil {
		t.Errorf("a log that is not there has the lines %q", got)
	}
}

// However lines come and whatever the bound, what is read is the end of what
// was written, whole and in order, and the files keep to the bound.
func TestTheLogIsAnEndOfWhatWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "log")
		if err != nil {
			r.Fatal(err)
		}
		max := rapid.Int64Range(100, 2000).Draw(r, "max")
		w, err := Create(dir, max)
		if err != nil {
			r.Fatal(err)
		}
		var wrote []Line
		for range rapid.IntRange(0, 60).Draw(r, "lines") {
			if rapid.IntRange(0, 20).Draw(r, "reopen") == 0 {
				if err := w.Close(); err != nil {
					r.Fatal(err)
				}
				if w, err = Create(dir, max); err != nil {
					r.Fatal(err)
				}
			}
			line := Line{
				Time:   epoch.Add(time.Duration(rapid.Int64Range(0, 1<<50).Draw(r, "time"))),
				Stream: Stream(rapid.IntRange(1, 2).Draw(r, "stream")),
				Data:   bytes.ReplaceAll(rapid.SliceOfN(rapid.Byte(), 0, 80).Draw(r, "data"), []byte("\n"), nil),
			}
			w.Write(line)
			wrote = append(wrote, line)
		}
		if err := w.Close(); err != nil {
			r.Fatal(err)
		}
		var got []Line
		if err := Read(t.Context(), dir, Query{}, func(line Line) error {
			line.Data = bytes.Clone(line.Data)
			got = append(got, line)
			return nil
		}); err != nil {
			r.Fatal(err)
		}
		if len(got) > len(wrote) || (len(got) == 0 && len(wrote) > 0) {
			r.Fatalf("%d lines read, %d written", len(got), len(wrote))
		}
		for i, line := range got {
			want := wrote[len(wrote)-len(got)+i]
			if !line.Time.Equal(want.Time) || line.Stream != want.Stream || !bytes.Equal(line.Data, want.Data) {
				r.Fatalf("line %d of %d = %v, want %v", i, len(got), line, want)
			}
		}
		for _, name := range []string{currentName, formerName} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err == nil && info.Size() > max+200 {
				r.Fatalf("%s has %d bytes, the bound is %d", name, info.Size(), max)
			}
		}
	})
}

// A follower sees every line once and in order, while files are put aside
// under it.
func TestFollowSeesAllLines(t *testing.T) {
	t.Parallel()
	const lines = 400
	dir := t.TempDir()
	// The bound lets the writer be one file ahead of the follower, who may look
	// only every so often; the writer waits for it now and then.
	w := create(t, dir, 8<<10)
	var ended atomic.Bool
	seen := make(chan string, lines)
	done := make(chan error, 1)
	go func() {
		done <- Read(t.Context(), dir, Query{Ended: func() (bool, error) { return ended.Load(), nil }}, func(line Line) error {
			seen <- string(line.Data)
			return nil
		})
	}()
	for i := range lines {
		w.Write(Line{Time: epoch, Stream: Stdout, Data: fmt.Append(nil, i)})
		if i%100 == 0 {
			for j := max(0, i-99); j <= i; j++ {
				if got := <-seen; got != fmt.Sprint(j) {
					t.Fatalf("line %d followed = %s", j, got)
				}
			}
		}
	}
	ended.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for j := lines - 99; j < lines; j++ {
		if got := <-seen; got != fmt.Sprint(j) {
			t.Fatalf("line %d followed = %s", j, got)
		}
	}
}

// A reader so slow that the log is put aside twice before it reads on is told once that
// it missed something, and gets all that is there.
func TestASlowFollowerIsToldOfWhatIsGone(t *testing.T) {
	t.Parallel()
	for name, wants := range map[string]func(Stream) bool{"all": nil, "stdout": func(s Stream) bool { return s == Stdout }} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			w := create(t, dir, 1<<10)
			write := func(from, to int) {
				for i := range to - from {
					w.Write(Line{Time: epoch.Add(time.Duration(from+i) * time.Second), Stream: Stdout, Data: fmt.Append(nil, from+i)})
				}
			}
			write(0, 1)
			var seen []string
			ended := false
			err := Read(t.Context(), dir, Query{Wants: wants, Ended: func() (bool, error) { return ended, nil }}, func(line Line) error {
				seen = append(seen, string(line.Data))
				if len(seen) == 1 {
					write(1, 200)
					ended = true
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			last := 0
			gaps := 0
			for _, line := range seen[1:] {
				if strings.Contains(line, "left out here") {
					gaps++
					last = -1
					continue
				}
				n, err := strconv.Atoi(line)
				if err != nil || last >= 0 && n != last+1 {
					t.Fatalf("after line %d came %q", last, line)
				}
				last = n
			}
			if gaps != 1 || last != 199 || len(seen) < 30 {
				t.Errorf("%d lines with %d gaps, up to %d", len(seen), gaps, last)
			}
		})
	}
}

func TestReadEndsWithItsContextAndItsReader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := create(t, dir, 1<<20)
	w.Write(Line{Time: epoch, Stream: Stdout, Data: []byte("x")})
	ctx, cancel := context.WithCancel(t.Context())
	if err := Read(ctx, dir, Query{Ended: func() (bool, error) { return false, nil }}, func(Line) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Read cancelled = %v", err)
	}
	gone := errors.New("gone")
	if err := Read(t.Context(), dir, Query{}, func(Line) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("Read whose reader is gone = %v", err)
	}
	if err := Read(t.Context(), dir, Query{Ended: func() (bool, error) { return false, gone }}, func(Line) error { return nil }); !errors.Is(err, gone) {
		t.Errorf("Read that cannot tell the end = %v", err)
	}
}

func TestHalfAFrameIsSkipped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := appendFrame(nil, Line{Time: epoch, Stream: Stdout, Data: []byte("good")})
	file := bytes.Join([][]byte{good[:20], []byte("\n"), good, bytes.Repeat([]byte("y"), 100_000), []byte("\n"), good, good[:25]}, nil)
	if err := os.WriteFile(filepath.Join(dir, currentName), file, 0o600); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"good", "good"}, texts(t, dir, Query{})); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(appendFrame(nil, Line{Time: epoch, Stream: Stdout, Data: []byte("x")}), uint8(0))
	f.Add([]byte("2026-01-02T03:04:05.000000006Z stdboth x\n\n \n"), uint8(3))
	f.Fuzz(func(t *testing.T, file []byte, tail uint8) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, currentName), file, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Read(t.Context(), dir, Query{Tail: int(tail)}, func(line Line) error {
			// What is read as a line is one: written again, it is the same.
			again, ok := parseFrame(bytes.TrimSuffix(appendFrame(nil, line), []byte("\n")))
			if !ok || !bytes.Equal(again.Data, line.Data) || bytes.IndexByte(line.Data, '\n') >= 0 || len(line.Data) > MaxLine {
				t.Errorf("a line that cannot be: %q", line.Data)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}
